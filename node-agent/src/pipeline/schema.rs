//! The Parquet parts: one row per passage, written and read in row groups, as DuckDB, pandas and LanceDB read them.
//!
//! Columns: `path` (the document's name; bytes outside UTF-8 as `%XX`), `passage` (from 0), `byte_start` and `byte_end` (in the
//! document), `text`, `vector` (fixed-size list of f32), `model` (digest in hexadecimal).
//! File metadata: `inglenook.schema` = 1, `inglenook.model` = the model's name.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, Float32Builder, Int32Builder, Int64Builder, StringBuilder};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float32Type, Int32Type, Int64Type};
use arrow_array::{Array as _, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

/// Version of the columns and their meaning.
pub const SCHEMA_VERSION: &str = "1";
const SCHEMA_KEY: &str = "inglenook.schema";
const MODEL_KEY: &str = "inglenook.model";
/// Rows held in memory before they are encoded.
const ROWS_PER_BATCH: usize = 512;
/// Rows of a row group: with 384 dimensions about 12 MiB.
const ROWS_PER_GROUP: usize = 8192;
/// Longest vector that is taken.
const DIMENSIONS_MAX: i32 = 65_536;

/// One passage with its vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The document.
    pub path: String,
    /// Position among the document's passages.
    pub passage: i32,
    /// First byte.
    pub byte_start: i64,
    /// One past the last byte.
    pub byte_end: i64,
    /// The passage itself.
    pub text: String,
    /// Its vector.
    pub vector: Vec<f32>,
    /// Digest of the model, hexadecimal.
    pub model: String,
}

/// A part that can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// Not Parquet, damaged, or the disk.
    #[error("Parquet: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// Arrow refuses it.
    #[error("Parquet: {0}")]
    Arrow(#[from] arrow_schema::ArrowError),
    /// The disk.
    #[error("part file: {0}")]
    File(#[from] std::io::Error),
    /// Parquet, but not one of our parts.
    #[error("not a part of ours: {0}")]
    Foreign(String),
}

impl PartError {
    /// Whether trying again may help.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

fn schema(dimensions: i32) -> SchemaRef {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    Arc::new(Schema::new(vec![
        Field::new("path", DataType::Utf8, false),
        Field::new("passage", DataType::Int32, false),
        Field::new("byte_start", DataType::Int64, false),
        Field::new("byte_end", DataType::Int64, false),
        Field::new("text", DataType::Utf8, false),
        Field::new("vector", DataType::FixedSizeList(item, dimensions), false),
        Field::new("model", DataType::Utf8, false),
    ]))
}

/// Writes a part row by row.
pub struct PartWriter<W: Write + Send> {
    writer: ArrowWriter<W>,
    schema: SchemaRef,
    dimensions: i32,
    rows: Vec<Row>,
    count: u64,
}

impl<W: Write + Send> PartWriter<W> {
    /// Begins a part for vectors of `dimensions`.
    ///
    /// # Errors
    /// [`PartError`].
    pub fn new(to: W, dimensions: u32, model_name: &str) -> Result<Self, PartError> {
        let dimensions = i32::try_from(dimensions)
            .ok()
            .filter(|dimensions| (1..=DIMENSIONS_MAX).contains(dimensions))
            .ok_or_else(|| PartError::Foreign(format!("vectors of {dimensions} dimensions")))?;
        let schema = schema(dimensions);
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            .set_max_row_group_row_count(Some(ROWS_PER_GROUP))
            .set_column_dictionary_enabled(
                ColumnPath::from(vec!["vector".to_owned(), "list".to_owned(), "item".to_owned()]),
                false,
            )
            .set_column_dictionary_enabled(ColumnPath::from("text"), false)
            .set_key_value_metadata(Some(vec![
                KeyValue::new(SCHEMA_KEY.to_owned(), SCHEMA_VERSION.to_owned()),
                KeyValue::new(MODEL_KEY.to_owned(), model_name.to_owned()),
            ]))
            .build();
        let writer = ArrowWriter::try_new(to, Arc::clone(&schema), Some(properties))?;
        Ok(Self { writer, schema, dimensions, rows: Vec::new(), count: 0 })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`PartError`]; a vector of another length is refused.
    pub fn push(&mut self, row: Row) -> Result<(), PartError> {
        if row.vector.len() != self.dimensions as usize {
            return Err(PartError::Foreign(format!(
                "a vector of {} dimensions in a part of {}",
                row.vector.len(),
                self.dimensions
            )));
        }
        self.count += 1;
        self.rows.push(row);
        if self.rows.len() >= ROWS_PER_BATCH { self.flush() } else { Ok(()) }
    }

    /// Rows so far.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.count
    }

    fn flush(&mut self) -> Result<(), PartError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut path = StringBuilder::new();
        let mut passage = Int32Builder::new();
        let (mut start, mut end) = (Int64Builder::new(), Int64Builder::new());
        let mut text = StringBuilder::new();
        let mut vector = FixedSizeListBuilder::new(Float32Builder::new(), self.dimensions);
        let mut model = StringBuilder::new();
        for row in self.rows.drain(..) {
            path.append_value(&row.path);
            passage.append_value(row.passage);
            start.append_value(row.byte_start);
            end.append_value(row.byte_end);
            text.append_value(&row.text);
            vector.values().append_slice(&row.vector);
            vector.append(true);
            model.append_value(&row.model);
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(path.finish()),
            Arc::new(passage.finish()),
            Arc::new(start.finish()),
            Arc::new(end.finish()),
            Arc::new(text.finish()),
            Arc::new(vector.finish()),
            Arc::new(model.finish()),
        ];
        self.writer.write(&RecordBatch::try_new(Arc::clone(&self.schema), columns)?)?;
        Ok(())
    }

    /// Ends the part and hands back where it was written to.
    ///
    /// # Errors
    /// [`PartError`].
    pub fn finish(mut self) -> Result<W, PartError> {
        self.flush()?;
        Ok(self.writer.into_inner()?)
    }
}

/// Reads a part row by row, a batch of rows in memory at a time.
pub struct PartReader {
    batches: ParquetRecordBatchReader,
    batch: Option<RecordBatch>,
    at: usize,
    dimensions: u32,
}

impl PartReader {
    /// Opens a part.
    ///
    /// # Errors
    /// [`PartError::Foreign`] if it isn't one of ours, of a version we know.
    pub fn open(path: &Path) -> Result<Self, PartError> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path)?)?;
        let version = builder
            .metadata()
            .file_metadata()
            .key_value_metadata()
            .and_then(|pairs| pairs.iter().find(|pair| pair.key == SCHEMA_KEY))
            .and_then(|pair| pair.value.clone());
        if version.as_deref() != Some(SCHEMA_VERSION) {
            return Err(PartError::Foreign(format!("schema version {version:?}, expected {SCHEMA_VERSION}")));
        }
        let found = builder.schema();
        let dimensions = match found.field_with_name("vector").map(Field::data_type) {
            Ok(DataType::FixedSizeList(_, dimensions)) if (1..=DIMENSIONS_MAX).contains(dimensions) => *dimensions,
            _ => return Err(PartError::Foreign("no column `vector` of fixed-size lists".to_owned())),
        };
        for (ours, theirs) in schema(dimensions).fields().iter().zip(found.fields()) {
            if ours.name() != theirs.name() || !ours.data_type().equals_datatype(theirs.data_type()) {
                return Err(PartError::Foreign(format!("column `{}` is of another kind", theirs.name())));
            }
        }
        if found.fields().len() != schema(dimensions).fields().len() {
            return Err(PartError::Foreign("columns are missing or too many".to_owned()));
        }
        let batches = builder.with_batch_size(ROWS_PER_BATCH).build()?;
        Ok(Self { batches, batch: None, at: 0, dimensions: u32::try_from(dimensions).unwrap_or(0) })
    }

    /// Length of its vectors.
    #[must_use]
    pub fn dimensions(&self) -> u32 {
        self.dimensions
    }

    /// The next row.
    ///
    /// # Errors
    /// [`PartError`].
    pub fn next_row(&mut self) -> Result<Option<Row>, PartError> {
        loop {
            if let Some(batch) = &self.batch
                && self.at < batch.num_rows()
            {
                let row = row(batch, self.at)?;
                self.at += 1;
                return Ok(Some(row));
            }
            match self.batches.next() {
                Some(batch) => {
                    self.batch = Some(batch?);
                    self.at = 0;
                }
                None => return Ok(None),
            }
        }
    }
}

fn row(batch: &RecordBatch, at: usize) -> Result<Row, PartError> {
    if batch.columns().iter().any(|column| column.is_null(at)) {
        return Err(PartError::Foreign("a row with an empty cell".to_owned()));
    }
    let text = |column: usize| batch.column(column).as_string::<i32>().value(at).to_owned();
    let vector = batch.column(5).as_fixed_size_list().value(at);
    Ok(Row {
        path: text(0),
        passage: batch.column(1).as_primitive::<Int32Type>().value(at),
        byte_start: batch.column(2).as_primitive::<Int64Type>().value(at),
        byte_end: batch.column(3).as_primitive::<Int64Type>().value(at),
        text: text(4),
        vector: vector.as_primitive::<Float32Type>().values().to_vec(),
        model: text(6),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example(path: &str, passage: i32) -> Row {
        Row {
            path: path.into(),
            passage,
            byte_start: 0,
            byte_end: 5,
            text: format!("text of {path}"),
            vector: vec![passage as f32, 0.5, -1.0],
            model: "ab".repeat(32),
        }
    }

    pub(crate) fn write(path: &Path, rows: &[Row]) {
        let mut writer = PartWriter::new(std::fs::File::create(path).unwrap(), 3, "mini").unwrap();
        for row in rows {
            writer.push(row.clone()).unwrap();
        }
        writer.finish().unwrap();
    }

    pub(crate) fn read(path: &Path) -> Vec<Row> {
        let mut reader = PartReader::open(path).unwrap();
        std::iter::from_fn(|| reader.next_row().unwrap()).collect()
    }

    #[test]
    fn rows_survive_across_batches_and_groups() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part.parquet");
        let rows: Vec<Row> = (0..9000).map(|i| example(&format!("d/{i:05}"), i % 7)).collect();
        write(&path, &rows);
        assert_eq!(read(&path), rows);
        write(&path, &[]);
        assert_eq!(read(&path), []);
        assert_eq!(PartReader::open(&path).unwrap().dimensions(), 3);
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for bytes in [&b""[..], b"PAR1", b"not parquet at all, but long enough to be looked at", b"PAR1\0\0\0\0PAR1"] {
            std::fs::write(&path, bytes).unwrap();
            assert!(PartReader::open(&path).is_err());
        }
        let plain = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, false)]));
        let writer = ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), plain, None).unwrap();
        writer.close().unwrap();
        assert!(matches!(PartReader::open(&path), Err(PartError::Foreign(_))));
        let mut writer = PartWriter::new(Vec::new(), 4, "m").unwrap();
        assert!(writer.push(example("a", 0)).is_err(), "three values into four dimensions");
        assert!(PartWriter::new(Vec::new(), 0, "m").is_err());
    }
}
