//! The file that tells who started us which addresses we took.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;

/// Writes `{"name": "address", …}` to `path` atomically: a reader sees all of it or no file.
///
/// # Errors
/// What the file system said.
pub fn write(path: &Path, addresses: &BTreeMap<String, SocketAddr>) -> std::io::Result<()> {
    let mut text = String::from("{");
    for (index, (name, address)) in addresses.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        // Names are ours (letters, digits, '-', '_') and addresses hold nothing that JSON escapes.
        let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
        text.push_str(&format!("\"{name}\":\"{address}\""));
    }
    text.push_str("}\n");
    let mut staged = path.as_os_str().to_owned();
    staged.push(format!(".{}", std::process::id()));
    let staged = Path::new(&staged);
    let mut file = std::fs::File::create(staged)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(staged, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_json_in_one_step() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("ready.json");
        let addresses = BTreeMap::from([
            ("grpc".to_owned(), SocketAddr::from(([127, 0, 0, 1], 1234))),
            ("metrics".to_owned(), SocketAddr::from(([127, 0, 0, 1], 1235))),
        ]);
        write(&path, &addresses).expect("room for a line");
        let text = std::fs::read_to_string(&path).expect("written");
        assert_eq!(text, "{\"grpc\":\"127.0.0.1:1234\",\"metrics\":\"127.0.0.1:1235\"}\n");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1, "nothing staged is left");
    }
}
