//! The rounds of a reply whose model calls tools: what it said, what its calls gave, and when it has to come to an end.
//!
//! All of it can be stored between two steps, and goes on from there.

use crate::core::chat::{Message, Part, Role, Said, ToolCall};
use crate::core::prompt::frame;
use serde::{Deserialize, Serialize};

/// How far a reply may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Rounds of calls.
    pub rounds: u32,
    /// Calls in all rounds together.
    pub calls: u32,
    /// Thousand-millionths of a currency unit for all of the model's turns; 0 where only budgets bind.
    pub cost_nanos: u64,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Nothing yet.
    Open,
    /// It is the same as the call with this number in its round.
    SameAs(usize),
    /// Somebody has to confirm it.
    Awaiting,
    /// A result, or the message of an error.
    Done {
        /// For the model.
        content: String,
        /// Whether it is an error's message.
        is_error: bool,
    },
}

/// A call of a tool in a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// As the model wrote it.
    pub call: ToolCall,
    /// Our record of it.
    pub record: Option<[u8; 16]>,
    /// What came of it.
    pub state: State,
}

/// What a model said in one turn, and the calls in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Round {
    said: Vec<Part>,
    made: Vec<Made>,
}

/// A reply that calls tools.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    limits: Limits,
    rounds: Vec<Round>,
    cost_nanos: u64,
}

/// A call's result for the model, as far as there is room.
fn result(round: &Round, made: &Made, seal: &str, room: &mut usize) -> Part {
    let state = match made.state {
        State::SameAs(at) => round.made.get(at).map_or(&made.state, |same| &same.state),
        _ => &made.state,
    };
    let (content, is_error) = match state {
        State::Done { content, is_error } => (content.as_str(), *is_error),
        _ => ("no result", true),
    };
    let content = match content.char_indices().nth(*room) {
        None => content.to_owned(),
        Some((end, _)) => {
            format!("{}\n(the rest is left out: the results of this reply are too long)", &content[..end])
        }
    };
    *room = room.saturating_sub(content.chars().count());
    Part::ToolResult {
        id: made.call.id.clone(),
        name: made.call.name.clone(),
        content: frame::tool_result(&content, seal),
        is_error,
    }
}

/// Arguments by which two calls are told to be the same: how the JSON is written does not matter.
fn meaning(call: &ToolCall) -> (&str, String) {
    let arguments = match serde_json::from_str::<serde_json::Value>(&call.arguments) {
        Ok(value) => value.to_string(),
        Err(_) => call.arguments.clone(),
    };
    (&call.name, arguments)
}

impl Agent {
    /// One that has not begun.
    pub fn new(limits: Limits) -> Agent {
        Agent { limits, rounds: Vec::new(), cost_nanos: 0 }
    }

    /// Takes a turn of the model. `true`: it called tools, which are open now; `false`: it was the last one.
    pub fn hear(&mut self, said: &Said, cost_nanos: u64) -> bool {
        let ends = self.must_end();
        self.cost_nanos = self.cost_nanos.saturating_add(cost_nanos);
        let mut made: Vec<Made> = Vec::new();
        for call in said.tool_calls() {
            let mut call = call.clone();
            // Results are matched by id: a provider that gives none twice is trusted, one that does is not.
            if call.id.is_empty() || self.calls().chain(&made).any(|earlier| earlier.call.id == call.id) {
                call.id = format!("call_{}_{}", self.rounds.len(), made.len());
            }
            let state = self.state_of(&call, &made);
            made.push(Made { call, record: None, state });
        }
        if ends || made.is_empty() {
            return false;
        }
        // What is sent back bears the same ids.
        let mut ids = made.iter().map(|made| made.call.id.clone());
        let said = said
            .parts
            .iter()
            .cloned()
            .map(|part| match part {
                Part::ToolCall(call) => Part::ToolCall(ToolCall { id: ids.next().unwrap_or_default(), ..call }),
                part => part,
            })
            .collect();
        self.rounds.push(Round { said, made });
        true
    }

    fn state_of(&self, call: &ToolCall, beside: &[Made]) -> State {
        if let Some(at) =
            beside.iter().position(|made| made.state == State::Open && meaning(&made.call) == meaning(call))
        {
            return State::SameAs(at);
        }
        let before = self.calls().find(|made| {
            matches!(made.state, State::Done { is_error: false, .. }) && meaning(&made.call) == meaning(call)
        });
        if let Some(before) = before {
            return before.state.clone();
        }
        if self.calls().count() + beside.len() >= self.limits.calls as usize {
            let content = format!("not called: this reply may call tools {} times", self.limits.calls);
            return State::Done { content, is_error: true };
        }
        State::Open
    }

    fn calls(&self) -> impl Iterator<Item = &Made> {
        self.rounds.iter().flat_map(|round| &round.made)
    }

    /// All calls, in order.
    pub fn made(&self) -> impl Iterator<Item = &Made> {
        self.calls()
    }

    /// The calls of the last round that nobody has begun, with their numbers.
    pub fn open(&self) -> Vec<(usize, ToolCall)> {
        let last = self.rounds.last().map_or(&[][..], |round| &round.made);
        let open = last.iter().enumerate().filter(|(_, made)| made.state == State::Open && made.record.is_none());
        open.map(|(at, made)| (at, made.call.clone())).collect()
    }

    /// The calls of the last round that wait for somebody, with their numbers and records.
    pub fn awaiting(&self) -> Vec<(usize, [u8; 16])> {
        let last = self.rounds.last().map_or(&[][..], |round| &round.made);
        let waiting = last.iter().enumerate().filter(|(_, made)| made.state == State::Awaiting);
        waiting.filter_map(|(at, made)| Some((at, made.record?))).collect()
    }

    /// The calls of the last round that were begun and have not ended, with their numbers and records.
    pub fn begun(&self) -> Vec<(usize, [u8; 16])> {
        let last = self.rounds.last().map_or(&[][..], |round| &round.made);
        let begun = last.iter().enumerate().filter(|(_, made)| matches!(made.state, State::Open | State::Awaiting));
        begun.filter_map(|(at, made)| Some((at, made.record?))).collect()
    }

    /// Notes what came of a call of the last round.
    pub fn give(&mut self, at: usize, record: Option<[u8; 16]>, state: State) {
        if let Some(made) = self.rounds.last_mut().and_then(|round| round.made.get_mut(at)) {
            made.record = record.or(made.record);
            made.state = state;
        }
    }

    /// Whether the model's next turn has to be its last: it may call nothing any more.
    pub fn must_end(&self) -> bool {
        let Limits { rounds, calls, cost_nanos } = self.limits;
        self.rounds.len() >= rounds as usize
            || self.calls().count() >= calls as usize
            || cost_nanos > 0 && self.cost_nanos >= cost_nanos
    }

    /// What was said and given so far, as it goes to the model. `seal` is a text that nobody can guess. Results have `room`
    /// characters together; the latest are kept whole as long as it lasts.
    pub fn messages(&self, seal: &str, room: usize) -> Vec<Message> {
        let mut room = room;
        let mut messages = Vec::with_capacity(2 * self.rounds.len());
        for round in self.rounds.iter().rev() {
            let mut results: Vec<Part> =
                round.made.iter().rev().map(|made| result(round, made, seal, &mut room)).collect();
            results.reverse();
            messages.push(Message { role: Role::User, parts: results, cache: false });
            messages.push(Message { role: Role::Assistant, parts: round.said.clone(), cache: false });
        }
        messages.reverse();
        // Every round is sent again with the next one.
        if let Some(last) = messages.last_mut() {
            last.cache = true;
        }
        messages
    }

    /// Words said before the last turn, a paragraph for each turn that had any.
    pub fn words(&self) -> String {
        let texts = self.rounds.iter().map(|round| Said { parts: round.said.clone(), ..Said::default() }.text());
        texts.filter(|text| !text.trim().is_empty()).map(|text| text.trim_end().to_owned() + "\n\n").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { rounds: 3, calls: 4, cost_nanos: 100 };

    fn said(calls: &[(&str, &str, &str)]) -> Said {
        let calls = calls.iter().map(|(id, name, arguments)| {
            Part::ToolCall(ToolCall {
                id: (*id).into(),
                name: (*name).into(),
                arguments: (*arguments).into(),
                signature: None,
            })
        });
        Said { parts: std::iter::once(Part::Text("Let me see.".into())).chain(calls).collect(), ..Said::default() }
    }

    fn done(content: &str) -> State {
        State::Done { content: content.into(), is_error: false }
    }

    fn results(agent: &Agent) -> Vec<(String, String, bool)> {
        let messages = agent.messages("seal", 1000);
        let parts = messages.iter().flat_map(|message| &message.parts);
        parts
            .filter_map(|part| match part {
                Part::ToolResult { id, content, is_error, .. } => Some((id.clone(), content.clone(), *is_error)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_turn_without_calls_is_the_last() {
        let mut agent = Agent::new(LIMITS);
        assert!(!agent.hear(&said(&[]), 1));
        assert!(agent.messages("s", 1000).is_empty());
    }

    #[test]
    fn two_calls_are_made_and_their_results_sent_in_order() {
        let mut agent = Agent::new(LIMITS);
        assert!(agent.hear(&said(&[("a", "f", "{}"), ("b", "g", "{}")]), 1));
        assert_eq!(agent.open().len(), 2);
        agent.give(1, Some([1; 16]), done("two"));
        agent.give(0, None, State::Done { content: "bad".into(), is_error: true });
        assert!(agent.open().is_empty());
        let results = results(&agent);
        assert_eq!(
            results.iter().map(|(id, _, error)| (id.as_str(), *error)).collect::<Vec<_>>(),
            [("a", true), ("b", false)]
        );
        assert!(results[1].1.contains("two"));
        assert_eq!(agent.words(), "Let me see.\n\n");
    }

    #[test]
    fn the_same_call_is_made_once() {
        let mut agent = Agent::new(LIMITS);
        agent.hear(&said(&[("a", "f", r#"{"x": 1}"#), ("b", "f", r#"{"x":1}"#)]), 0);
        assert_eq!(agent.open().len(), 1);
        agent.give(0, None, done("one"));
        assert!(results(&agent).iter().all(|(_, content, error)| content.contains("one") && !error));
        agent.hear(&said(&[("c", "f", r#"{ "x": 1 }"#)]), 0);
        assert!(agent.open().is_empty(), "the answer is known");
        assert!(results(&agent)[2].1.contains("one"));
    }

    #[test]
    fn an_error_may_be_tried_again() {
        let mut agent = Agent::new(LIMITS);
        agent.hear(&said(&[("a", "f", "{}")]), 0);
        agent.give(0, None, State::Done { content: "no".into(), is_error: true });
        agent.hear(&said(&[("b", "f", "{}")]), 0);
        assert_eq!(agent.open().len(), 1);
    }

    #[test]
    fn ids_that_come_twice_are_told_apart() {
        let mut agent = Agent::new(LIMITS);
        agent.hear(&said(&[("a", "f", "1"), ("a", "f", "2"), ("", "f", "3")]), 0);
        let ids: std::collections::HashSet<String> = results(&agent).into_iter().map(|(id, ..)| id).collect();
        assert_eq!(ids.len(), 3);
        let said = agent.messages("s", 1000)[0].clone();
        let sent: Vec<String> = said
            .parts
            .iter()
            .filter_map(|part| match part {
                Part::ToolCall(call) => Some(call.id.clone()),
                _ => None,
            })
            .collect();
        assert!(sent.iter().all(|id| ids.contains(id)), "calls and results bear the same ids");
    }

    #[test]
    fn it_ends_after_its_rounds_calls_or_cost() {
        let mut agent = Agent::new(LIMITS);
        for round in 0..3 {
            assert!(!agent.must_end());
            let arguments = round.to_string();
            assert!(agent.hear(&said(&[("", "f", &arguments)]), 0));
        }
        assert!(agent.must_end());
        assert!(!agent.hear(&said(&[("", "f", "9")]), 0), "what is called all the same is not heard");

        let mut agent = Agent::new(LIMITS);
        agent.hear(&said(&[("", "f", "1"), ("", "f", "2"), ("", "f", "3"), ("", "f", "4"), ("", "f", "5")]), 0);
        assert_eq!(agent.open().len(), 4);
        assert!(agent.must_end());
        assert!(results(&agent)[4].1.contains("4 times"));

        let mut agent = Agent::new(LIMITS);
        agent.hear(&said(&[("", "f", "1")]), 100);
        assert!(agent.must_end());
    }

    #[test]
    fn the_latest_results_are_kept_where_room_is_short() {
        let mut agent = Agent::new(LIMITS);
        for (arguments, result) in [("1", "first"), ("2", "second")] {
            agent.hear(&said(&[("", "f", arguments)]), 0);
            agent.give(0, None, done(&result.repeat(10)));
        }
        let texts: Vec<String> = agent
            .messages("seal", 80)
            .iter()
            .flat_map(|message| &message.parts)
            .filter_map(|part| match part {
                Part::ToolResult { content, .. } => Some(content.clone()),
                _ => None,
            })
            .collect();
        assert!(texts[1].contains(&"second".repeat(10)));
        assert!(
            texts[0].contains(&"first".repeat(4))
                && !texts[0].contains(&"first".repeat(5))
                && texts[0].contains("left out")
        );
    }

    #[test]
    fn it_goes_on_from_where_it_was_stored() {
        let mut agent = Agent::new(LIMITS);
        agent.hear(&said(&[("a", "f", "{}")]), 7);
        agent.give(0, Some([3; 16]), State::Awaiting);
        let stored = serde_json::to_string(&agent).unwrap();
        let agent: Agent = serde_json::from_str(&stored).unwrap();
        assert_eq!(agent.awaiting(), [(0, [3; 16])]);
    }
}
