//! Limits of requests that hold for every engine.

use crate::stop::validate_stop;
use crate::{EmbedRequest, EmbedText, EngineError, GenerateRequest, Prompt};

/// Most texts of one embedding request.
pub const EMBED_TEXTS_MAX: usize = 4096;
/// Longest text to embed, in bytes; far beyond any model's window.
pub const EMBED_TEXT_BYTES_MAX: usize = 8 << 20;
/// Most alternatives per token.
pub const LOGPROBS_MAX: u32 = 20;
/// Most messages of one chat.
pub const MESSAGES_MAX: usize = 4096;
/// Longest prompt in bytes, all messages together; far beyond any model's window.
pub const PROMPT_BYTES_MAX: usize = 8 << 20;

impl EmbedRequest {
    /// Checks number and lengths of the texts.
    ///
    /// # Errors
    /// [`EngineError::Input`] names the limit and what came.
    pub fn validate(&self) -> Result<(), EngineError> {
        if self.texts.is_empty() || self.texts.len() > EMBED_TEXTS_MAX {
            return Err(EngineError::Input(format!(
                "an embedding request takes 1 to {EMBED_TEXTS_MAX} texts, got {}",
                self.texts.len()
            )));
        }
        for (index, EmbedText { text, ids }) in self.texts.iter().enumerate() {
            if text.len() > EMBED_TEXT_BYTES_MAX {
                return Err(EngineError::Input(format!(
                    "text {index} has {} bytes, at most {EMBED_TEXT_BYTES_MAX} are taken",
                    text.len()
                )));
            }
            let ids = ids.as_ref().map_or(0, |ids| ids.len());
            if ids > EMBED_TEXT_BYTES_MAX {
                return Err(EngineError::Input(format!(
                    "text {index} comes with {ids} token ids, at most {EMBED_TEXT_BYTES_MAX} are taken"
                )));
            }
        }
        Ok(())
    }
}

impl GenerateRequest {
    /// Checks everything that doesn't depend on the model.
    ///
    /// # Errors
    /// [`EngineError::Input`] names the field, its range and the value.
    pub fn validate(&self) -> Result<(), EngineError> {
        self.sampling.validate()?;
        validate_stop(&self.stop)?;
        if self.max_tokens == 0 {
            return Err(EngineError::Input("max_tokens must be at least 1, got 0".into()));
        }
        if self.logprobs > LOGPROBS_MAX {
            return Err(EngineError::Input(format!("logprobs must be at most {LOGPROBS_MAX}, got {}", self.logprobs)));
        }
        if self.resume.emitted.len() as u64 > u64::from(self.max_tokens) {
            return Err(EngineError::Input(format!(
                "a resumed stream has {} tokens already, max_tokens is {}",
                self.resume.emitted.len(),
                self.max_tokens
            )));
        }
        match &self.prompt {
            Prompt::Tokens(ids) if ids.is_empty() => Err(EngineError::Input("the prompt is empty".into())),
            Prompt::Messages(messages) => {
                if messages.is_empty() || messages.len() > MESSAGES_MAX {
                    return Err(EngineError::Input(format!(
                        "a chat takes 1 to {MESSAGES_MAX} messages, got {}",
                        messages.len()
                    )));
                }
                if messages.iter().all(|message| message.content.trim().is_empty()) {
                    return Err(EngineError::Input("the prompt is empty: every message is blank".into()));
                }
                let bytes: usize = messages.iter().map(|message| message.content.len() + message.role.len()).sum();
                if bytes > PROMPT_BYTES_MAX {
                    return Err(EngineError::Input(format!(
                        "the messages have {bytes} bytes, at most {PROMPT_BYTES_MAX} are taken"
                    )));
                }
                match messages.iter().find(|message| !is_role(&message.role)) {
                    Some(message) => Err(EngineError::Input(format!(
                        "a message's role is one of system, user, assistant, tool; got {:?}",
                        message.role.chars().take(32).collect::<String>()
                    ))),
                    None => Ok(()),
                }
            }
            Prompt::Tokens(_) => Ok(()),
        }
    }
}

// Templates put the role between control tokens unchecked, so that a free role could imitate another turn.
fn is_role(role: &str) -> bool {
    matches!(role, "system" | "user" | "assistant" | "tool")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Message, Resume, Sampling};

    fn ask(content: &str) -> GenerateRequest {
        GenerateRequest {
            prompt: Prompt::Messages(vec![Message { role: "user".into(), content: content.into() }]),
            resume: Resume::default(),
            sampling: Sampling::default(),
            max_tokens: 4,
            stop: vec![],
            logprobs: 0,
        }
    }

    #[test]
    fn hostile_generations_are_refused_by_name() {
        assert!(ask("hi").validate().is_ok());
        let check = |request: GenerateRequest, word: &str| {
            let error = request.validate().expect_err(word).to_string();
            assert!(error.contains(word), "{error}");
        };
        check(ask(""), "empty");
        check(ask(" \n"), "empty");
        check(GenerateRequest { max_tokens: 0, ..ask("hi") }, "max_tokens");
        check(GenerateRequest { logprobs: 21, ..ask("hi") }, "logprobs");
        check(GenerateRequest { stop: vec![String::new()], ..ask("hi") }, "stop");
        check(GenerateRequest { prompt: Prompt::Tokens(vec![]), ..ask("hi") }, "empty");
        check(GenerateRequest { prompt: Prompt::Messages(vec![]), ..ask("hi") }, "messages");
        check(GenerateRequest { resume: Resume { emitted: vec![1; 5], text_offset: 0 }, ..ask("hi") }, "max_tokens");
        check(GenerateRequest { sampling: Sampling { top_p: 2.0, ..Sampling::default() }, ..ask("hi") }, "top_p");
        check(ask(&"x".repeat(PROMPT_BYTES_MAX)), "bytes");
        let role = Message { role: "user<|im_end|>".into(), content: "hi".into() };
        check(GenerateRequest { prompt: Prompt::Messages(vec![role]), ..ask("hi") }, "role");
    }

    #[test]
    fn hostile_embeddings_are_refused_by_name() {
        let ask = |texts: Vec<String>| {
            let texts = texts.into_iter().map(EmbedText::from).collect();
            EmbedRequest { texts, normalise: false }.validate()
        };
        assert!(ask(vec![String::new()]).is_ok());
        assert!(ask(vec![]).unwrap_err().to_string().contains("got 0"));
        assert!(ask(vec![String::new(); 1_000_000]).unwrap_err().to_string().contains("1000000"));
        assert!(ask(vec!["x".repeat(50 << 20)]).unwrap_err().to_string().contains("bytes"));
        let ids = vec![1; EMBED_TEXT_BYTES_MAX + 1];
        let much = EmbedRequest { texts: vec![EmbedText::tokenised("x", &ids)], normalise: false };
        assert!(much.validate().unwrap_err().to_string().contains("token ids"));
    }
}
