//! Finds the starter models; tests that need one say plainly that they skip where it is missing.

use std::path::{Path, PathBuf};

/// The folder of all-MiniLM-L6-v2.
pub(crate) fn embedding() -> Option<PathBuf> {
    find("config.json with model.safetensors", &|dir| {
        dir.join("config.json").is_file()
            && dir.join("model.safetensors").is_file()
            && dir.join("modules.json").is_file()
    })
}

/// The folder of SmolLM2-135M-Instruct Q4_1.
pub(crate) fn language() -> Option<PathBuf> {
    find("SmolLM2-135M-Instruct.Q4_1.gguf", &|dir| dir.join("SmolLM2-135M-Instruct.Q4_1.gguf").is_file())
}

/// The folder of the PP-OCRv4 networks.
pub(crate) fn ocr() -> Option<PathBuf> {
    find("ch_PP-OCRv4_det_infer.onnx", &|dir| dir.join("ch_PP-OCRv4_det_infer.onnx").is_file())
}

fn find(what: &str, is_it: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let root = std::env::var_os("INGLE_TEST_MODELS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/models"), PathBuf::from);
    let found = below(&root, 5, is_it);
    if found.is_none() {
        eprintln!("SKIPPED: no {what} below {} (set INGLE_TEST_MODELS)", root.display());
    }
    found
}

fn below(dir: &Path, depth: usize, is_it: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    if is_it(dir) {
        return Some(dir.into());
    }
    let mut folders: Vec<PathBuf> = std::fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect();
    folders.sort_unstable();
    (depth > 0).then(|| folders.iter().find_map(|folder| below(folder, depth - 1, is_it))).flatten()
}
