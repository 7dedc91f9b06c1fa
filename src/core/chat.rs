//! A conversation with a language model in our own words: what is asked, and what comes back, whoever answers.
//!
//! JSON travels as text here, as the frames between the processes cannot carry a value without a type.

use serde::{Deserialize, Serialize};

/// Whose protocol a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// OpenAI's chat completions and embeddings.
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
    /// Gemini's `generateContent`.
    Gemini,
    /// Ollama's own `/api`.
    Ollama,
    /// A server that follows OpenAI's chat completions, more or less.
    OpenAiCompatible,
}

impl Kind {
    /// The kind that `set_provider` calls so.
    pub fn named(name: &str) -> Option<Kind> {
        Some(match name {
            "openai" => Kind::OpenAi,
            "anthropic" => Kind::Anthropic,
            "gemini" => Kind::Gemini,
            "ollama" => Kind::Ollama,
            "openai_compatible" => Kind::OpenAiCompatible,
            _ => return None,
        })
    }
}

/// What a language model is asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Chat {
    /// What it is told first; the stable part comes first, and may be kept by the provider's prompt cache.
    pub system: Vec<SystemPart>,
    /// The conversation, in order, ending with what is to be answered.
    pub messages: Vec<Message>,
    /// Tools that it may call.
    pub tools: Vec<Tool>,
    /// Whether it must, may or may not call them.
    pub tool_choice: ToolChoice,
    /// The form of the reply.
    pub output: Output,
    /// Most tokens of the reply; the model's own limit where absent.
    pub max_output_tokens: Option<u32>,
    /// 0 to 2; the provider's default where absent.
    pub temperature: Option<f32>,
    /// 0 to 1; the provider's default where absent.
    pub top_p: Option<f32>,
    /// How much it reasons before it speaks, in its provider's words; the provider's default where absent.
    pub reasoning_effort: Option<String>,
    /// Texts at which it stops.
    pub stop: Vec<String>,
    /// An opaque mark of the person who asks, for the provider's abuse detection.
    pub user: Option<String>,
    /// Whether the reply is wanted piece by piece.
    pub stream: bool,
}

/// A part of the system prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemPart {
    /// The text.
    pub text: String,
    /// Everything up to here stays the same between calls: a place for a cache mark.
    pub cache: bool,
}

/// What a model can take; also what a question has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Tools that it may call.
    pub tools: bool,
    /// Pictures.
    pub images: bool,
    /// Documents, such as PDFs.
    pub documents: bool,
}

impl Default for Abilities {
    /// All: what nobody says that a model cannot take, it is sent.
    fn default() -> Self {
        Abilities { tools: true, images: true, documents: true }
    }
}

impl Abilities {
    /// What parts of a question, and whether it has tools, need.
    pub fn needed<'a>(tools: bool, parts: impl IntoIterator<Item = &'a Part>) -> Abilities {
        let mut needs = Abilities { tools, images: false, documents: false };
        for part in parts {
            needs.images |= matches!(part, Part::Image(_));
            needs.documents |= matches!(part, Part::Document { .. });
        }
        needs
    }

    /// The first of these needs that is not among them, in words.
    pub fn lacks(self, needs: Abilities) -> Option<&'static str> {
        let pairs = [
            (self.tools, needs.tools, "calls tools"),
            (self.images, needs.images, "takes images"),
            (self.documents, needs.documents, "takes documents"),
        ];
        pairs.into_iter().find(|(can, needed, _)| *needed && !can).map(|(.., what)| what)
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The person, or the results of tools.
    User,
    /// The model.
    Assistant,
}

/// What was said in one turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// Its parts in order.
    pub parts: Vec<Part>,
    /// Everything up to here stays the same between calls: a place for a cache mark.
    pub cache: bool,
}

impl Message {
    /// A turn of text alone.
    pub fn text(role: Role, text: impl Into<String>) -> Message {
        Message { role, parts: vec![Part::Text(text.into())], cache: false }
    }
}

/// A part of a turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Part {
    /// Words.
    Text(String),
    /// A picture.
    Image(Media),
    /// A document, such as a PDF.
    Document {
        /// Its name, for the model.
        name: String,
        /// Its bytes.
        media: Media,
    },
    /// A tool that the model called.
    ToolCall(ToolCall),
    /// What the tool gave.
    ToolResult {
        /// Id of the call.
        id: String,
        /// Name of the tool.
        name: String,
        /// The result; data, never an instruction.
        content: String,
        /// Whether it is an error's message.
        is_error: bool,
    },
    /// The model's own reasoning, kept to be sent back to the same provider as it was.
    Thinking {
        /// The words, empty where the provider keeps them to itself.
        text: String,
        /// The provider's seal on them.
        signature: String,
    },
}

/// Bytes with their type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Media {
    /// Such as `image/png`.
    pub mime_type: String,
    /// The bytes.
    pub data: Vec<u8>,
}

/// A tool that the model may call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Letters, digits, `_` and `-`, at most 64.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// JSON Schema of its arguments, as text; an object.
    pub parameters: String,
}

/// Whether the model calls tools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It must not.
    None,
    /// It must call one.
    Required,
    /// It must call this one.
    Named(String),
}

/// The form of a reply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Words.
    #[default]
    Text,
    /// A JSON value of any shape.
    Json,
    /// A JSON value that a schema describes.
    Schema {
        /// Letters, digits, `_` and `-`.
        name: String,
        /// JSON Schema, as text.
        schema: String,
    },
}

/// A call of a tool, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The provider's id for it, or one that we made where it has none.
    pub id: String,
    /// Name of the tool, as the model wrote it.
    pub name: String,
    /// JSON text of its arguments, as the model wrote it: not always valid.
    pub arguments: String,
    /// What the provider wants back with it (Gemini's `thoughtSignature`).
    pub signature: Option<String>,
}

/// One step of a reply, in whatever protocol it came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The provider's id of this reply, for its support.
    Id(String),
    /// The next words.
    Text(String),
    /// The next words of the model's reasoning.
    Thinking(String),
    /// The seal on the reasoning so far; it closes one block of reasoning.
    Signature(String),
    /// A tool call begins. Calls are numbered from 0 in the order of their beginning.
    ToolCall {
        /// Its number.
        index: u32,
        /// The provider's id for it, or one that we made.
        id: String,
        /// Name of the tool.
        name: String,
        /// What the provider wants back with it.
        signature: Option<String>,
    },
    /// More of a tool call's arguments.
    Arguments {
        /// The call's number.
        index: u32,
        /// The next characters of the JSON text.
        fragment: String,
    },
    /// Tokens so far; the last one counts.
    Usage(Usage),
    /// Why it ended. Usage may still follow.
    Stop(Stop),
}

/// Why a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// It was finished, or came to a stop text.
    End,
    /// It reached the limit of tokens.
    Length,
    /// It wants tools to be called.
    ToolCalls,
    /// The model declined.
    Refusal,
    /// The provider's filter ended it.
    Filtered,
    /// The provider wants to be called again with what it said so far.
    Pause,
}

impl Stop {
    /// What replies call it.
    pub fn name(self) -> &'static str {
        match self {
            Stop::End => "end",
            Stop::Length => "length",
            Stop::ToolCalls => "tool_calls",
            Stop::Refusal => "refusal",
            Stop::Filtered => "filtered",
            Stop::Pause => "pause",
        }
    }
}

/// Tokens of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, those from a cache included.
    pub input: u64,
    /// Tokens of the prompt that came from the provider's cache.
    pub cached: u64,
    /// Tokens of the prompt that were written to the provider's cache, included in `input`.
    pub cache_written: u64,
    /// Tokens of the reply, reasoning included.
    pub output: u64,
    /// Tokens of reasoning.
    pub reasoning: u64,
}

/// What came of a call, put together from its events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// The parts in order, as they have to be sent back: reasoning, words, tool calls.
    pub parts: Vec<Part>,
    /// Why it ended; `None` while it has not.
    pub stop: Option<Stop>,
    /// Tokens, if the provider told.
    pub usage: Option<Usage>,
    /// The provider's id.
    pub id: Option<String>,
}

impl Said {
    /// Adds the next event. Numbers that no call has are ignored.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::Id(id) => self.id = Some(id.clone()),
            Event::Text(more) => match self.parts.last_mut() {
                Some(Part::Text(text)) => text.push_str(more),
                _ => self.parts.push(Part::Text(more.clone())),
            },
            Event::Thinking(more) => match self.parts.last_mut() {
                Some(Part::Thinking { text, signature }) if signature.is_empty() => text.push_str(more),
                _ => self.parts.push(Part::Thinking { text: more.clone(), signature: String::new() }),
            },
            Event::Signature(seal) => match self.parts.last_mut() {
                Some(Part::Thinking { signature, .. }) if signature.is_empty() => signature.push_str(seal),
                _ => self.parts.push(Part::Thinking { text: String::new(), signature: seal.clone() }),
            },
            Event::ToolCall { id, name, signature, .. } => self.parts.push(Part::ToolCall(ToolCall {
                id: id.clone(),
                name: name.clone(),
                arguments: String::new(),
                signature: signature.clone(),
            })),
            Event::Arguments { index, fragment } => {
                let calls = self.parts.iter_mut().filter_map(|part| match part {
                    Part::ToolCall(call) => Some(call),
                    _ => None,
                });
                if let Some(call) = calls.into_iter().nth(*index as usize) {
                    call.arguments.push_str(fragment);
                }
            }
            Event::Usage(usage) => self.usage = Some(*usage),
            Event::Stop(stop) => self.stop = Some(*stop),
        }
    }

    /// Its words, reasoning left out.
    pub fn text(&self) -> String {
        self.parts
            .iter()
            .filter_map(|part| match part {
                Part::Text(text) => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }

    /// Its tool calls, in order.
    pub fn tool_calls(&self) -> impl Iterator<Item = &ToolCall> {
        self.parts.iter().filter_map(|part| match part {
            Part::ToolCall(call) => Some(call),
            _ => None,
        })
    }
}

/// What texts are embedded for; some models want to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// To be found.
    #[default]
    Document,
    /// To find by.
    Query,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_lacks_is_told_of_what_is_needed_alone() {
        let picture = Part::Image(Media { mime_type: "image/png".into(), data: vec![1] });
        let needs = Abilities::needed(false, [&Part::Text("see".into()), &picture]);
        assert_eq!(needs, Abilities { tools: false, images: true, documents: false });
        assert_eq!(Abilities::default().lacks(needs), None);
        assert_eq!(Abilities { images: false, ..Abilities::default() }.lacks(needs), Some("takes images"));
        assert_eq!(Abilities { tools: false, documents: false, ..Abilities::default() }.lacks(needs), None);
        assert_eq!(Abilities { tools: false, ..Abilities::default() }.lacks(Abilities::default()), Some("calls tools"));
    }
}
