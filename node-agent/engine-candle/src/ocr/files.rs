//! Which files of a folder make an OCR model: one `*det*.onnx`, one `*rec*.onnx` and, if there is one, a `*cls*.onnx`.

use std::path::Path;

use ingle_engine::{EngineError, ModelCard, Task};

use super::onnx::{Data, FILE_BYTES_MAX, Onnx};
use crate::weights::file::read_small;

/// Names of the files, each directly in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) detector: String,
    pub(crate) recogniser: String,
    /// Without it, orientation is decided by recognising some lines both ways.
    pub(crate) orienter: Option<String>,
}

impl Files {
    /// All names.
    pub(crate) fn names(&self) -> Vec<String> {
        [Some(&self.detector), Some(&self.recogniser), self.orienter.as_ref()].into_iter().flatten().cloned().collect()
    }
}

/// The model among `names`: none if there is no detector or no recogniser, an error that says why if there are several.
pub(crate) fn files(names: &[String]) -> Result<Option<Files>, String> {
    let part = |word: &str| {
        let fits = |name: &&String| {
            let name = name.to_ascii_lowercase();
            name.ends_with(".onnx") && name.contains(word) && !name.contains('/')
        };
        let mut found = names.iter().filter(fits);
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => {
                Err(format!("holds several *{word}*.onnx ({first}, {second}, …); an OCR model has one of each"))
            }
            (one, _) => Ok(one.cloned()),
        }
    };
    let (Some(detector), Some(recogniser)) = (part("det")?, part("rec")?) else { return Ok(None) };
    let orienter = part("cls")?;
    let named = Files { detector, recogniser, orienter };
    let mut unique = named.names();
    unique.sort_unstable();
    unique.dedup();
    if unique.len() != named.names().len() {
        return Err(format!(
            "has one file for two parts ({}); name each after its part: det, rec, cls",
            unique.join(", ")
        ));
    }
    Ok(Some(named))
}

/// A file's name and contents.
pub(crate) type Bytes = (String, Vec<u8>);

/// The files' contents.
pub(crate) struct Contents {
    pub(crate) detector: Bytes,
    pub(crate) recogniser: Bytes,
    pub(crate) orienter: Option<Bytes>,
}

/// Reads a folder's files, each up to a limit.
///
/// # Errors
/// [`EngineError::Model`] names the file that is missing or too long.
pub(crate) fn read(dir: &Path) -> Result<Contents, EngineError> {
    let fail = |problem: String| EngineError::Model { file: ".".into(), problem };
    let missing = || fail("holds no *det*.onnx and *rec*.onnx".into());
    let names = crate::folder::names(dir)?;
    let files = files(&names).map_err(fail)?.ok_or_else(missing)?;
    let read = |name: String| read_small(dir, &name, FILE_BYTES_MAX).map(|bytes| (name, bytes));
    Ok(Contents {
        detector: read(files.detector)?,
        recogniser: read(files.recogniser)?,
        orienter: files.orienter.map(read).transpose()?,
    })
}

impl Contents {
    /// The model's card.
    ///
    /// # Errors
    /// [`EngineError::Model`] if a file isn't ONNX.
    pub(crate) fn card(&self) -> Result<ModelCard, EngineError> {
        let (mut parameters, mut weight_bytes, mut layers) = (0, 0, 0);
        for (name, bytes) in [&self.detector, &self.recogniser].into_iter().chain(&self.orienter) {
            let onnx = Onnx::read(bytes).map_err(|error| error.of(name))?;
            let floats = onnx.tensors.values().map(|tensor| match &tensor.data {
                Data::Floats(values) => values.len() as u64,
                Data::Ints(_) => 0,
            });
            parameters += floats.sum::<u64>();
            weight_bytes += bytes.len() as u64;
            layers += onnx.nodes.iter().filter(|node| node.op == "Conv").count();
        }
        Ok(ModelCard {
            task: Task::Ocr,
            architecture: "pp-ocrv4".into(),
            quantisation: "F32".into(),
            parameters,
            weight_bytes,
            bytes_per_token: weight_bytes,
            kv_bytes_per_token: 0,
            context: 0,
            dimensions: 0,
            layers: u32::try_from(layers).unwrap_or(u32::MAX),
            width: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Result<Option<Vec<String>>, String> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        files(&names).map(|files| files.map(|files| files.names()))
    }

    #[test]
    fn a_detector_and_a_recogniser_make_a_model() {
        let all = [
            "README.md",
            "ch_PP-OCRv4_det_infer.onnx",
            "ch_PP-OCRv4_rec_infer.onnx",
            "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        ];
        assert_eq!(found(&all).unwrap().unwrap(), &all[1..]);
        assert_eq!(found(&all[..3]).unwrap().unwrap(), &all[1..3]);
        assert_eq!(found(&all[..2]), Ok(None));
        assert_eq!(found(&["onnx/det.onnx", "onnx/rec.onnx"]), Ok(None));
        assert_eq!(found(&["model.onnx", "config.json"]), Ok(None));
    }

    #[test]
    fn several_of_a_part_are_refused_and_the_reason_is_said() {
        assert!(found(&["det.onnx", "old_det.onnx", "rec.onnx"]).unwrap_err().contains("several *det*"));
        assert!(found(&["detrec.onnx"]).unwrap_err().contains("two parts"));
    }
}
