//! Calls of tools over the protocol: the tools that the server itself offers, and what is said of a call.

use super::{Answer, Refusal};
use serde_json::{Map, Value, json};

/// The one question that is put to a client's user, and its key.
const QUESTION: &str = "approval";

/// A tool as `tools/list` tells it.
pub fn tool(name: &str, description: &str, schema: Value, waits: bool, read_only: bool, is_http: bool) -> Value {
    let description = if waits {
        format!("{description}\n\nA call waits until a person approves it.")
    } else {
        description.to_owned()
    };
    json!({
        "name": name,
        "title": super::title(name),
        "description": description,
        "inputSchema": schema,
        // Whatever writes may destroy, and do so again when it is repeated: nobody has said otherwise.
        "annotations": {
            "readOnlyHint": read_only,
            "destructiveHint": !read_only,
            "idempotentHint": read_only,
            "openWorldHint": is_http,
        },
    })
}

/// A tool that the server itself offers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Own {
    /// `call_status`.
    Status,
    /// `confirm_call`.
    Confirm,
    /// `reject_call`.
    Reject,
}

impl Own {
    const ALL: [Own; 3] = [Own::Status, Own::Confirm, Own::Reject];

    /// Whether it decides about a call: what a client that runs whatever its model says must not have.
    pub fn decides(self) -> bool {
        self != Own::Status
    }

    fn name(self) -> &'static str {
        match self {
            Own::Status => "call_status",
            Own::Confirm => "confirm_call",
            Own::Reject => "reject_call",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Own::Status => "Tells what became of a call: its result, its error, or what it waits for.",
            Own::Confirm => {
                "Approves a call that waits and has it carried out. Only for the user to decide: show them the function and \
                 its arguments, and call this when they have said yes."
            }
            Own::Reject => "Rejects a call that waits, when the user has said no. It is not carried out.",
        }
    }

    /// The one of that name.
    pub fn of_name(name: &str) -> Option<Own> {
        Self::ALL.into_iter().find(|own| own.name() == name)
    }

    /// Their names, by which no registered tool is offered.
    pub fn names() -> Vec<String> {
        Self::ALL.into_iter().map(|own| own.name().to_owned()).collect()
    }

    /// Those that are offered as `tools/list` tells them; `approvals`: also those that decide.
    pub fn tools(approvals: bool) -> Vec<Value> {
        Self::ALL.into_iter().filter(|own| approvals || !own.decides()).map(Self::tool).collect()
    }

    fn tool(self) -> Value {
        let mut properties = json!({ "call": { "type": "string", "format": "uuid", "description": "Id of the call" } });
        if self == Own::Reject {
            properties["reason"] = json!({ "type": "string", "maxLength": 2000, "description": "Why" });
        }
        if self == Own::Confirm {
            properties["effect"] =
                json!({ "type": "string", "description": "The effect that the user was shown, as the call told it" });
        }
        let schema =
            json!({ "type": "object", "properties": properties, "required": ["call"], "additionalProperties": false });
        tool(self.name(), self.description(), schema, false, self == Own::Status, false)
    }

    /// Its arguments, call and reason or effect; or what is wrong with them, for the model.
    pub fn arguments(self, given: &Map<String, Value>) -> Result<(uuid::Uuid, Option<&str>), String> {
        let more = match self {
            Own::Status => "",
            Own::Confirm => "effect",
            Own::Reject => "reason",
        };
        let known = |name: &str| name == "call" || name == more;
        if let Some(other) = given.keys().find(|name| !known(name)) {
            return Err(format!("{} has no argument \"{other}\"", self.name()));
        }
        let call = given.get("call").and_then(Value::as_str).and_then(|call| uuid::Uuid::try_parse(call).ok());
        let call = call.ok_or("\"call\" is not the id of a call")?;
        match given.get(more) {
            None => Ok((call, None)),
            Some(Value::String(text)) => Ok((call, Some(text))),
            Some(_) => Err(format!("\"{more}\" is not a string")),
        }
    }
}

/// What a tool returned, as JSON text, or why it did not, in words.
pub fn result(content: &str, is_error: bool) -> Answer {
    let said = match serde_json::from_str(content) {
        Ok(Value::String(text)) if !is_error => text,
        _ => content.to_owned(),
    };
    let structured = if !is_error && content.starts_with('{') {
        format!(", \"structuredContent\": {content}")
    } else {
        String::new()
    };
    Answer { result: format!("{{\"content\": {}, \"isError\": {is_error}{structured}}}", texts(&said)), asks: false }
}

fn texts(text: &str) -> Value {
    json!([{ "type": "text", "text": text }])
}

/// A call that has not ended.
pub struct Waiting<'a> {
    /// Its id.
    pub call: &'a str,
    /// `awaiting_confirmation`, `queued`, ...
    pub status: &'a str,
    /// The tool.
    pub function: &'a str,
    /// JSON text.
    pub arguments: &'a str,
    /// The caller may approve it.
    pub may_approve: bool,
    /// Role that may approve it; `None`: whoever made it.
    pub approver_role: Option<&'a str>,
    /// When it can no longer be approved.
    pub lapses_at: Option<&'a str>,
    /// What an approval is for, where it was previewed.
    pub effect: Option<&'a str>,
    /// Rows that it would change, by table, where it was previewed.
    pub changes: Option<&'a str>,
    /// The client's user chose to decide by `confirm_call` and `reject_call`.
    pub approvals: bool,
}

impl Waiting<'_> {
    /// What is told of it: that it was not carried out yet, and who has to do what.
    pub fn told(&self) -> Answer {
        let call = self.call;
        let text = match (self.status, self.may_approve, self.approver_role) {
            ("awaiting_confirmation", true, _) if !self.approvals => format!(
                "This call has not been carried out: it needs an approval, which is not yours to give. Tell the user what it would \
                 do and its id; they approve it in the application. Look with call_status later. Call: {call}"
            ),
            ("awaiting_confirmation", true, _) => format!(
                "This call has not been carried out: it needs an approval. Show the user what it would do, and let them decide \
                 with confirm_call or reject_call. Call: {call}"
            ),
            ("awaiting_confirmation", false, Some(role)) => format!(
                "This call has not been carried out: somebody else with the role {role} in the workspace has to approve it. \
                 Look with call_status later. Call: {call}"
            ),
            ("awaiting_confirmation", false, None) => {
                format!("This call has not been carried out: whoever made it has to approve it. Call: {call}")
            }
            _ => format!("This call will be carried out in the background. Look with call_status later. Call: {call}"),
        };
        let facts = json!({
            "call": call,
            "status": self.status,
            "function": self.function,
            "may_approve": self.may_approve,
            "approver_role": self.approver_role,
            "lapses_at": self.lapses_at,
            "effect": self.effect,
        });
        let facts = facts.to_string();
        let facts = format!("{}, \"arguments\": {}}}", &facts[..facts.len() - 1], self.arguments);
        let result = format!("{{\"content\": {}, \"isError\": false, \"structuredContent\": {facts}}}", texts(&text));
        Answer { result, asks: false }
    }

    /// Has the client ask its user, and the request sent again with what they say.
    pub fn asked(&self) -> Answer {
        let changes = self.changes.map(|changes| format!("\nIt would change {changes}.")).unwrap_or_default();
        let state = self.effect.map(|effect| format!("{}/{effect}", self.call));
        let result = json!({
            "inputRequests": { QUESTION: { "method": "elicitation/create", "params": {
                "mode": "form",
                "message": format!("Call {} with these arguments?\n{}{changes}", self.function, self.arguments),
                "requestedSchema": {
                    "type": "object",
                    "properties": { "approve": { "type": "boolean", "title": "Approve", "description": "Have it carried out" } },
                    "required": ["approve"],
                },
            } } },
            // What was shown is what comes back to be approved.
            "requestState": state.as_deref().unwrap_or(self.call),
        });
        Answer { result: result.to_string(), asks: true }
    }
}

/// What a client's user said to the question.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// Have it carried out.
    Yes,
    /// Do not.
    No,
    /// They have not decided.
    Later,
    /// They were not asked.
    Nothing,
}

/// The call that a request comes back to, if it does, and the effect that was shown.
pub fn asked_before(params: &Map<String, Value>) -> Result<Option<(uuid::Uuid, Option<&str>)>, Refusal> {
    let Some(state) = params.get("requestState") else { return Ok(None) };
    let state = state.as_str().ok_or_else(unknown_state)?;
    let (call, effect) = match state.split_once('/') {
        Some((call, effect)) => (call, Some(effect)),
        None => (state, None),
    };
    let call = uuid::Uuid::try_parse(call).map_err(|_| unknown_state())?;
    Ok(Some((call, effect)))
}

/// What came back is not of the call that it came with.
pub fn unknown_state() -> Refusal {
    Refusal::invalid_params("\"requestState\" is not the one of this request")
}

/// What the user said, by a request that comes back.
pub fn said(params: &Map<String, Value>) -> Said {
    let Some(response) = params.get("inputResponses").and_then(|responses| responses.get(QUESTION)) else {
        return Said::Nothing;
    };
    let approve = response.get("content").and_then(|content| content.get("approve")).and_then(Value::as_bool);
    match (response.get("action").and_then(Value::as_str), approve) {
        (Some("accept"), Some(true)) => Said::Yes,
        (Some("accept"), Some(false)) | (Some("decline"), _) => Said::No,
        (Some("cancel"), _) => Said::Later,
        _ => Said::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn objects_are_structured_texts_are_plain_and_errors_are_errors() {
        let read = |content: &str, is_error| serde_json::from_str::<Value>(&result(content, is_error).result).unwrap();
        let object = read("{\"n\": 1}", false);
        assert_eq!(
            (&object["structuredContent"], &object["content"][0]["text"]),
            (&json!({"n": 1}), &json!("{\"n\": 1}"))
        );
        for (content, said) in [("\"done\"", "done"), ("[1, 2]", "[1, 2]"), ("null", "null")] {
            let other = read(content, false);
            assert_eq!((other.get("structuredContent"), &other["content"][0]["text"]), (None, &json!(said)));
        }
        let error = read("Error 22023: no", true);
        assert_eq!((&error["isError"], error.get("structuredContent")), (&json!(true), None));
        assert!(result("{\"n\": 1.10}", false).result.ends_with("{\"n\": 1.10}}"));
    }

    #[test]
    fn only_a_plain_yes_approves() {
        for (response, expected) in [
            (json!({ "action": "accept", "content": { "approve": true } }), Said::Yes),
            (json!({ "action": "accept", "content": { "approve": false } }), Said::No),
            (json!({ "action": "accept", "content": { "approve": "true" } }), Said::Nothing),
            (json!({ "action": "accept" }), Said::Nothing),
            (json!({ "action": "decline", "content": { "approve": true } }), Said::No),
            (json!({ "action": "cancel" }), Said::Later),
            (json!({}), Said::Nothing),
        ] {
            assert_eq!(said(&object(json!({ "inputResponses": { "approval": response } }))), expected, "{response}");
        }
        assert_eq!(said(&object(json!({ "inputResponses": { "other": { "action": "accept" } } }))), Said::Nothing);
        assert_eq!(asked_before(&object(json!({ "requestState": "forged" }))).unwrap_err().code, -32602);
        let call = uuid::Uuid::nil();
        let state = |state: String| object(json!({ "requestState": state }));
        assert_eq!(asked_before(&state(call.to_string())), Ok(Some((call, None))));
        assert_eq!(asked_before(&state(format!("{call}/00ff"))), Ok(Some((call, Some("00ff")))));
    }

    #[test]
    fn the_servers_own_tools_take_what_they_say() {
        let id = "01a20591-0cc5-7db6-b9a0-00514eea3c35";
        assert!(Own::Reject.arguments(&object(json!({ "call": id, "reason": "no" }))).is_ok());
        assert!(
            Own::Confirm
                .arguments(&object(json!({ "call": id, "effect": "00ff" })))
                .is_ok_and(|(_, effect)| effect == Some("00ff"))
        );
        for wrong in [json!({}), json!({ "call": 1 }), json!({ "call": "x" }), json!({ "call": id, "reason": "no" })] {
            assert!(Own::Confirm.arguments(&object(wrong.clone())).is_err(), "{wrong}");
        }
        assert_eq!(Own::names(), ["call_status", "confirm_call", "reject_call"]);
        let offered = |approvals| Own::tools(approvals).iter().map(|tool| tool["name"].clone()).collect::<Vec<Value>>();
        assert_eq!(offered(false), [json!("call_status")]);
        assert_eq!(offered(true).len(), 3);
        assert!(Own::names().iter().all(|name| Own::of_name(name).is_some()) && Own::of_name("f").is_none());
    }
}
