//! What reaches a language model, and what is made of its reply: texts come in, texts and ranges go out.
//!
//! Nothing here asks a model. What a document, a summary or a tool holds is framed as data ([`frame`]), planned to fit
//! the model's window ([`window`]), and shortened without a model ([`summary`]); a reply's citation marks are read
//! ([`marks`]), and the JSON in it is found ([`json`]).

pub mod frame;
mod group;
pub mod json;
pub mod marks;
pub mod summary;
mod support;
pub mod window;
mod words;
