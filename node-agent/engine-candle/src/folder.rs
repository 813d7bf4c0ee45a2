//! Which files of a folder make a model: one GGUF, config.json with safetensors beside it, or the ONNX files of an OCR model.
//!
//! A folder with several GGUF files is none: they may be quantisations of one model or parts of another, and nobody said which.
//! Put each into a folder of its own.

use std::path::Path;

use ingle_engine::EngineError;

use crate::ocr::{self, Files};

/// Most entries of a folder that are looked at.
const ENTRIES_MAX: usize = 4096;

/// Files that go with config.json and safetensors if they are there.
const COMPANIONS: [&str; 4] = ["config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json"];

/// What a folder holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// A GGUF file of this name.
    Gguf(String),
    /// config.json and safetensors.
    Safetensors,
    /// Networks that read pages.
    Ocr(Files),
}

pub(crate) fn is_gguf(name: &str) -> bool {
    ends_with(name, ".gguf")
}

pub(crate) fn is_safetensors(name: &str) -> bool {
    ends_with(name, ".safetensors")
}

fn ends_with(name: &str, end: &str) -> bool {
    let at = name.len().saturating_sub(end.len());
    !name.contains('/') && name.len() > end.len() && name.is_char_boundary(at) && name[at..].eq_ignore_ascii_case(end)
}

/// What the names add up to; the error says why they are no model.
pub(crate) fn find(names: &[String]) -> Result<Found, String> {
    let ggufs: Vec<&String> = names.iter().filter(|name| is_gguf(name)).collect();
    match ggufs.as_slice() {
        [one] => return Ok(Found::Gguf((*one).clone())),
        [] => {}
        [first, second, ..] => {
            return Err(format!(
                "holds {} GGUF files ({first}, {second}, …); one file per folder makes a model, put each into a folder of its own",
                ggufs.len()
            ));
        }
    }
    let config = names.iter().any(|name| name == "config.json");
    match (config, names.iter().any(|name| is_safetensors(name))) {
        (true, true) => Ok(Found::Safetensors),
        (true, false) => Err("holds config.json but no *.safetensors".into()),
        (false, true) => Err("holds *.safetensors but no config.json".into()),
        (false, false) => ocr::files(names)?.map(Found::Ocr).ok_or_else(|| {
            "holds neither a GGUF file, nor config.json with *.safetensors, nor *det*.onnx with *rec*.onnx".into()
        }),
    }
}

/// The model's files among `names`, in a fixed order.
pub(crate) fn files(names: &[String]) -> Option<Vec<String>> {
    let mut files = match find(names).ok()? {
        Found::Gguf(name) => vec![name],
        Found::Ocr(files) => files.names(),
        Found::Safetensors => {
            let belongs =
                |name: &&String| COMPANIONS.contains(&name.as_str()) || is_safetensors(name) || is_module(name);
            names.iter().filter(belongs).cloned().collect()
        }
    };
    files.sort_unstable();
    files.dedup();
    Some(files)
}

/// `1_Pooling/config.json` and its like.
fn is_module(name: &str) -> bool {
    let Some((folder, "config.json")) = name.split_once('/') else { return false };
    folder.split_once('_').is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Names of the files directly in `dir`, sorted; those outside UTF-8 are no model's.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, EngineError> {
    let fail =
        |error: std::io::Error| EngineError::Model { file: ".".into(), problem: format!("can't be listed: {error}") };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)?.take(ENTRIES_MAX) {
        if let Ok(name) = entry.map_err(fail)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_gguf_alone_is_a_model() {
        let found = files(&list(&["__init__.py", "Model.Q4_1.GGUF", "README.md"]));
        assert_eq!(found, Some(list(&["Model.Q4_1.GGUF"])));
        assert_eq!(files(&list(&["deeper/model.gguf"])), None);
        assert_eq!(files(&list(&[".gguf"])), None);
    }

    #[test]
    fn several_ggufs_are_none_and_the_reason_is_said() {
        let names = list(&["a.gguf", "b.gguf"]);
        assert_eq!(files(&names), None);
        assert!(find(&names).unwrap_err().contains("2 GGUF files"));
    }

    #[test]
    fn a_sentence_transformers_folder_is_a_model() {
        let found = files(&list(&[
            "tokenizer.json",
            "vocab.txt",
            "model.safetensors",
            "config.json",
            "1_Pooling/config.json",
            "modules.json",
            "onnx/config.json",
            "pytorch_model.bin",
            "sentence_bert_config.json",
            "train_script.py",
        ]));
        let expected = [
            "1_Pooling/config.json",
            "config.json",
            "model.safetensors",
            "modules.json",
            "sentence_bert_config.json",
            "tokenizer.json",
        ];
        assert_eq!(found, Some(list(&expected)));
        assert_eq!(files(&list(&["config.json", "pytorch_model.bin"])), None);
        assert_eq!(files(&list(&["1_Pooling/config.json"])), None);
    }

    #[test]
    fn networks_that_read_pages_are_a_model() {
        let names = list(&["README.md", "rec.onnx", "det.onnx", "other.onnx"]);
        assert_eq!(files(&names), Some(list(&["det.onnx", "rec.onnx"])));
        assert!(find(&list(&["det.onnx", "rec.onnx", "rec2.onnx"])).unwrap_err().contains("several *rec*"));
        assert!(find(&list(&["det.onnx"])).unwrap_err().contains("*rec*.onnx"));
    }
}
