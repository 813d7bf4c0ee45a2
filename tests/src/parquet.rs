//! Reads the Parquet parts of an output place as anyone would: with the standard readers, knowing only the columns.

use std::fs::File;
use std::path::Path;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float32Type, Int32Type, Int64Type};
use arrow_array::{Array as _, RecordBatch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::share::Share;

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The document.
    pub path: String,
    /// Which of its passages, from 0.
    pub passage: i32,
    /// Where it begins in the document.
    pub byte_start: i64,
    /// Where it ends.
    pub byte_end: i64,
    /// The passage.
    pub text: String,
    /// Its vector.
    pub vector: Vec<f32>,
    /// The model's digest, in hexadecimal.
    pub model: String,
}

/// All rows of all parts below a directory of a share, in order of path and passage.
///
/// # Panics
/// A part can't be read or has other columns.
#[must_use]
pub fn rows(share: &Share, directory: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for name in share.names(directory) {
        if name.ends_with(".parquet") {
            read(&share.root().join(directory).join(name), &mut rows);
        }
    }
    rows.sort_by(|a, b| (&a.path, a.passage).cmp(&(&b.path, b.passage)));
    rows
}

fn read(path: &Path, rows: &mut Vec<Row>) {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(|builder| builder.build())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for batch in reader {
        take(&batch.unwrap_or_else(|error| panic!("{}: {error}", path.display())), rows);
    }
}

fn take(batch: &RecordBatch, rows: &mut Vec<Row>) {
    let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}")).clone();
    let (path, text, model) = (column("path"), column("text"), column("model"));
    let (path, text, model) = (path.as_string::<i32>(), text.as_string::<i32>(), model.as_string::<i32>());
    let passage = column("passage");
    let passage = passage.as_primitive::<Int32Type>();
    let (start, end) = (column("byte_start"), column("byte_end"));
    let (start, end) = (start.as_primitive::<Int64Type>(), end.as_primitive::<Int64Type>());
    let vectors = column("vector");
    let vectors = vectors.as_fixed_size_list();
    for row in 0..batch.num_rows() {
        assert!(!vectors.is_null(row), "a row without a vector");
        rows.push(Row {
            path: path.value(row).to_owned(),
            passage: passage.value(row),
            byte_start: start.value(row),
            byte_end: end.value(row),
            text: text.value(row).to_owned(),
            vector: vectors.value(row).as_primitive::<Float32Type>().values().to_vec(),
            model: model.value(row).to_owned(),
        });
    }
}
