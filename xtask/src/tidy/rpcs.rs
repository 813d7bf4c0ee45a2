//! Every RPC's comment is its manual: a sentence and a grpcurl line whose request the contract would take.

mod schema;

use serde_json::{Deserializer, Value};

use super::{Finding, Tree};
use schema::Schema;

/// Checks every `.proto` file of the contract.
#[must_use]
pub fn check(tree: &Tree) -> Vec<Finding> {
    let protos: Vec<(&str, &str)> =
        tree.texts().filter(|(path, _)| path.starts_with("proto/ingle/") && path.ends_with(".proto")).collect();
    let mut found = Vec::new();
    if protos.is_empty() {
        found.push(Finding::new("proto/ingle", "holds no .proto file"));
    }
    let schema = Schema::parse(protos.iter().map(|(_, text)| *text));
    for (path, text) in protos {
        for rpc in rpcs(text) {
            found.extend(
                rpc_problem(&rpc, &schema).map(|problem| Finding::new(format!("{path}:{}", rpc.line), problem)),
            );
        }
    }
    found
}

struct Rpc<'a> {
    line: usize,
    /// `ingle.v1.Jobs/GetJob`.
    method: String,
    request: &'a str,
    comment: Vec<&'a str>,
}

fn rpcs(text: &str) -> Vec<Rpc<'_>> {
    let (mut package, mut service) = ("", "");
    let mut comment = Vec::new();
    let mut rpcs = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let mut words = line.split([' ', '(', ')', ';', '{']).filter(|word| !word.is_empty());
        match words.next() {
            Some("//") => comment.push(line.trim_start_matches('/').trim()),
            Some("package") => package = words.next().unwrap_or_default(),
            Some("service") => service = words.next().unwrap_or_default(),
            Some("rpc") => {
                let name = words.next().unwrap_or_default();
                let request = words.find(|word| *word != "stream").unwrap_or_default();
                let method = format!("{package}.{service}/{name}");
                rpcs.push(Rpc { line: index + 1, method, request, comment: std::mem::take(&mut comment) });
            }
            _ => {}
        }
        if !line.starts_with("//") {
            comment.clear();
        }
    }
    rpcs
}

fn rpc_problem(rpc: &Rpc<'_>, schema: &Schema) -> Option<String> {
    let method = &rpc.method;
    let Some(call) = rpc.comment.iter().find(|line| line.starts_with("grpcurl ")) else {
        return Some(format!("{method}: its comment needs a line `grpcurl … ADDRESS {method}`"));
    };
    let first = rpc.comment.first().copied().unwrap_or_default();
    if first.is_empty() || first.starts_with("grpcurl ") {
        return Some(format!("{method}: its comment should begin with a sentence"));
    }
    let Some((options, _)) = call.split_once(&format!(" {method}")).filter(|(_, rest)| rest.is_empty()) else {
        return Some(format!("{method}: its grpcurl line should end with ` {method}`"));
    };
    let (_, after) = options.split_once("-d '")?;
    let Some((data, _)) = after.split_once('\'') else {
        return Some(format!("{method}: its grpcurl line opens a quote and doesn't close it"));
    };
    for message in Deserializer::from_str(data).into_iter::<Value>() {
        match message {
            Err(error) => return Some(format!("{method}: its request isn't JSON: {error}")),
            Ok(message) => {
                if let Err(problem) = schema.check(rpc.request, &message) {
                    return Some(format!("{method}: its request wouldn't be taken: {problem}"));
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(comment: &str) -> Vec<String> {
        let text = format!(
            "package a.v1;\nmessage Ask {{\n  string name = 1;  // a name\n  repeated Part parts = 2;\n  oneof x {{\n    \
             uint64 size = 3;\n  }}\n}}\nmessage Part {{ Kind kind = 1; map<string, string> labels = 2; }}\nenum Kind {{\n  \
             KIND_A = 0;\n}}\nservice S {{\n{comment}  rpc Do(stream Ask) returns (stream Answer);\n}}\n"
        );
        check(&Tree::of(&[("proto/ingle/v1/a.proto", &text)])).into_iter().map(|finding| finding.problem).collect()
    }

    #[test]
    fn a_manual_with_a_runnable_line_passes() {
        for call in [
            "grpcurl -plaintext 127.0.0.1:1 a.v1.S/Do",
            "grpcurl -plaintext -d '{\"name\":\"n\",\"size\":\"3\"}' 127.0.0.1:1 a.v1.S/Do",
            "grpcurl -d '{\"parts\":[{\"kind\":\"KIND_A\",\"labels\":{\"k\":\"v\"}}]} {\"name\":\"second\"}' h:1 a.v1.S/Do",
        ] {
            assert_eq!(problems(&format!("  // Does it.\n  //\n  //   {call}\n")), Vec::<String>::new(), "{call}");
        }
    }

    #[test]
    fn lapses_are_named() {
        let one = |comment: &str, word: &str| {
            let found = problems(comment);
            assert!(found.len() == 1 && found[0].contains(word), "{word}: {found:?}");
        };
        let call = |data: &str| format!("  // Does it.\n  //   grpcurl -d '{data}' h:1 a.v1.S/Do\n");
        one("", "needs a line");
        one("  // Does it.\n", "needs a line");
        one("  // grpcurl h:1 a.v1.S/Do\n", "begin with a sentence");
        one("  // Does it.\n  // grpcurl h:1 a.v1.S/Undo\n", "should end with");
        one("  // Does it.\n  // grpcurl h:1 a.v1.S/Do\n\n", "needs a line");
        one(&call("{\"name\":"), "isn't JSON");
        one(&call("{\"nom\":1}"), "`nom`");
        one(&call("{\"parts\":{\"kind\":\"KIND_A\"}}"), "`parts`");
        one(&call("{\"parts\":[{\"kind\":\"KIND_B\"}]}"), "KIND_B");
        one(&call("{\"parts\":[{\"name\":\"n\"}]}"), "`name`");
        one(&call("{\"size\":\"many\"}"), "`size`");
        one(&call("[1]"), "object");
    }

    #[test]
    fn an_empty_contract_is_no_contract() {
        assert_eq!(check(&Tree::of(&[])).len(), 1);
    }
}
