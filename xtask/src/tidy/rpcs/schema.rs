//! Just enough of the protobuf language to say whether a JSON request names fields that exist.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    kind: String,
    repeated: bool,
    map: bool,
}

/// Messages and enums of all files; names are taken without their package, for there is one.
#[derive(Debug, Default)]
pub(super) struct Schema {
    messages: BTreeMap<String, BTreeMap<String, Field>>,
    enums: BTreeMap<String, BTreeSet<String>>,
}

impl Schema {
    /// Reads the files' messages and enums.
    pub(super) fn parse<'a>(files: impl Iterator<Item = &'a str>) -> Self {
        let mut schema = Self::default();
        for text in files {
            schema.parse_file(text);
        }
        schema
    }

    fn parse_file(&mut self, text: &str) {
        let bare: String =
            text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect();
        // Open blocks: (keyword, name). Statements end with ';', blocks open with '{'.
        let mut open: Vec<(String, String)> = Vec::new();
        let mut statement = String::new();
        for c in bare.chars() {
            match c {
                '{' => {
                    let mut words = statement.split_whitespace();
                    let word = words.next().unwrap_or_default().to_owned();
                    let name = words.next().unwrap_or_default().to_owned();
                    match word.as_str() {
                        "message" => drop(self.messages.entry(name.clone()).or_default()),
                        "enum" => drop(self.enums.entry(name.clone()).or_default()),
                        _ => {}
                    }
                    open.push((word, name));
                    statement.clear();
                }
                '}' => {
                    open.pop();
                    statement.clear();
                }
                ';' => {
                    self.statement(&open, statement.trim());
                    statement.clear();
                }
                c => statement.push(c),
            }
        }
    }

    fn statement(&mut self, open: &[(String, String)], statement: &str) {
        let holder = open.iter().rev().find(|(word, _)| word != "oneof");
        let Some((word, holder)) = holder else { return };
        let Some((left, _)) = statement.split_once('=') else { return };
        match word.as_str() {
            "enum" => drop(self.enums.entry(holder.clone()).or_default().insert(left.trim().to_owned())),
            "message" => {
                let map = left.trim_start().starts_with("map<");
                let words: Vec<&str> = left.split_whitespace().collect();
                let (Some(name), repeated) = (words.last(), words.first() == Some(&"repeated")) else { return };
                let kind = words.iter().rev().nth(1).copied().unwrap_or_default();
                let field = Field { kind: kind.to_owned(), repeated, map };
                self.messages.entry(holder.clone()).or_default().insert((*name).to_owned(), field);
            }
            _ => {}
        }
    }

    /// Whether a message of this kind would take this JSON; only names and shapes are looked at.
    pub(super) fn check(&self, message: &str, value: &Value) -> Result<(), String> {
        let fields = self.messages.get(message).ok_or_else(|| format!("no message {message} in the contract"))?;
        let object = value.as_object().ok_or_else(|| format!("{message} is an object, not {value}"))?;
        for (name, value) in object {
            let field = fields.get(name).ok_or_else(|| format!("{message} has no field `{name}`"))?;
            if field.map {
                value.as_object().ok_or_else(|| format!("`{name}` is a map, not {value}"))?;
            } else if field.repeated {
                let items = value.as_array().ok_or_else(|| format!("`{name}` is a list, not {value}"))?;
                items.iter().try_for_each(|item| self.check_one(name, &field.kind, item))?;
            } else {
                self.check_one(name, &field.kind, value)?;
            }
        }
        Ok(())
    }

    fn check_one(&self, name: &str, kind: &str, value: &Value) -> Result<(), String> {
        if self.messages.contains_key(kind) {
            return self.check(kind, value);
        }
        if let Some(names) = self.enums.get(kind) {
            let known = value.as_str().is_some_and(|value| names.contains(value));
            return if known { Ok(()) } else { Err(format!("`{name}`: {kind} has no value {value}")) };
        }
        // 64-bit numbers travel as text in protobuf's JSON.
        let fits = match kind {
            "string" | "bytes" => value.is_string(),
            "bool" => value.is_boolean(),
            _ => value.is_number() || value.as_str().is_some_and(|text| text.parse::<f64>().is_ok()),
        };
        if fits { Ok(()) } else { Err(format!("`{name}` is a {kind}, not {value}")) }
    }
}
