//! The reader of definitions: fields first, then the graph that they make, then what its templates refer to.

use super::definition::{Concurrency, Definition, Each, Effort, OnError, Rate, Retry, Step, StepKind, Steps, Until};
use super::path::Reference;
use super::read::{Object, nearest, wrong};
use super::value::{Condition, Template};
use super::{MOST_DEFINITION, MOST_STATEMENT, MOST_STEPS};
use crate::core::error::Result;
use serde_json::{Value, json};

/// What a run's context has beside the values of a `map`.
const ROOTS: [&str; 5] = ["input", "trigger", "run", "vars", "steps"];

/// What can be done for each element of an array.
const INNER: [&str; 8] = ["tool", "http", "sql", "ask", "complete", "complete_json", "search", "workflow"];

/// What only steps of their own can be.
const OUTER: [&str; 6] = ["condition", "switch", "map", "wait", "approval", "stop"];

const DAY: i64 = 86_400_000;

/// The names of all steps, by which others are referred to.
struct Names<'v>(Vec<&'v str>);

/// A step as it stands, before the graph is known.
struct Draft<'v> {
    object: Object<'v>,
    kind: StepKind,
    when: Option<Condition>,
    effort: Effort,
    /// `None` where the field is left out.
    needs: Option<Vec<usize>>,
}

/// Reads a definition, as [`Definition::read`] says.
pub fn read(definition: &Value) -> Result<Definition> {
    if definition.to_string().len() > MOST_DEFINITION {
        return Err(wrong("", format!("is larger than {MOST_DEFINITION} bytes")));
    }
    let object = Object::of("", definition)?;
    object.only(&[&["input", "output", "timeout", "concurrency", "rate", "priority", "steps"]])?;
    let steps = object.need("steps")?.as_array().ok_or_else(|| wrong("steps", "is not an array"))?;
    if steps.is_empty() || steps.len() > MOST_STEPS {
        return Err(wrong("steps", format!("has {} elements, expected 1 to {MOST_STEPS}", steps.len())));
    }
    let places: Vec<String> = (0..steps.len()).map(|at| format!("steps[{at}]")).collect();
    let objects: Vec<Object> =
        steps.iter().zip(&places).map(|(step, place)| Object::of(place, step)).collect::<Result<_>>()?;
    let names = Names::read(&objects)?;
    let drafts = objects.iter().map(|object| draft(*object, &names)).collect::<Result<Vec<_>>>()?;
    let (steps, order) = graph(drafts, &names)?;
    let before = before(&steps, &order);
    for (at, step) in steps.iter().enumerate() {
        check_references(step, &places[at], before[at], &names)?;
    }
    let all = (0..steps.len()).fold(Steps::default(), |mut all, step| {
        all.insert(step);
        all
    });
    let output = object.get("output").map(|output| Template::read(output, "output")).transpose()?;
    if let Some(output) = &output {
        check(output.references().iter(), &ROOTS, "output", all, &names)?;
    }
    Ok(Definition {
        input: object.get("input").map(input).transpose()?,
        timeout: object.interval("timeout")?,
        concurrency: concurrency(&object, &names)?,
        rate: rate(&object)?,
        priority: object.whole("priority", -1000..=1000)?.unwrap_or(0) as i32,
        steps,
        output,
        order,
        before,
    })
}

fn input(schema: &Value) -> Result<Value> {
    match schema {
        Value::Object(_) => Ok(schema.clone()),
        _ => Err(wrong("input", "is not a JSON Schema")),
    }
}

fn concurrency(object: &Object, names: &Names) -> Result<Option<Concurrency>> {
    let Some(value) = object.get("concurrency") else { return Ok(None) };
    let object = Object::of("concurrency", value)?;
    object.only(&[&["limit", "key"]])?;
    object.need("limit")?;
    let limit = object.whole("limit", 1..=10_000)?.unwrap_or(1) as u32;
    let key = template_text(&object, "key")?;
    if let Some(key) = &key {
        check(key.references().iter(), &["input", "trigger"], "concurrency.key", Steps::default(), names)?;
    }
    Ok(Some(Concurrency { limit, key }))
}

fn rate(object: &Object) -> Result<Option<Rate>> {
    let Some(value) = object.get("rate") else { return Ok(None) };
    let object = Object::of("rate", value)?;
    object.only(&[&["limit", "per"]])?;
    object.need("limit")?;
    object.need("per")?;
    let limit = object.whole("limit", 1..=1_000_000)?.unwrap_or(1) as u32;
    Ok(Some(Rate { limit, per: object.interval("per")?.unwrap_or(DAY) }))
}

impl<'v> Names<'v> {
    fn read(objects: &[Object<'v>]) -> Result<Names<'v>> {
        let mut names = Vec::with_capacity(objects.len());
        for object in objects {
            let name = object.need_text("name")?;
            if !is_name(name) {
                return Err(wrong(&object.at("name"), format!("\"{name}\" is not a name")).hint(
                    "A name has letters, digits and underscores, begins with no digit, and is at most 63 long.",
                ));
            }
            if let Some(earlier) = names.iter().position(|other| *other == name) {
                return Err(wrong(&object.at("name"), format!("\"{name}\" is the name of steps[{earlier}] already")));
            }
            names.push(name);
        }
        Ok(Names(names))
    }

    fn find(&self, name: &str, place: &str) -> Result<usize> {
        self.0.iter().position(|other| *other == name).ok_or_else(|| {
            let error = wrong(place, format!("step \"{name}\" does not exist"));
            match nearest(name, self.0.iter().copied()) {
                Some(near) => error.hint(format!("Perhaps you meant \"{near}\".")),
                None => error,
            }
        })
    }

    /// A step, or an array of steps, without repetition.
    fn targets(&self, value: &Value, place: &str) -> Result<Vec<usize>> {
        let target = |value: &Value, place: &str| match value {
            Value::String(name) => self.find(name, place),
            _ => Err(wrong(place, "is not a step's name")),
        };
        let mut targets = match value {
            Value::Array(values) => values
                .iter()
                .enumerate()
                .map(|(at, value)| target(value, &format!("{place}[{at}]")))
                .collect::<Result<Vec<_>>>()?,
            one => vec![target(one, place)?],
        };
        targets.sort_unstable();
        targets.dedup();
        Ok(targets)
    }

    fn field(&self, object: &Object, name: &str) -> Result<Vec<usize>> {
        object.get(name).map_or(Ok(Vec::new()), |value| self.targets(value, &object.at(name)))
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= 63
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn draft<'v>(object: Object<'v>, names: &Names) -> Result<Draft<'v>> {
    let known: Vec<&str> = INNER.into_iter().chain(OUTER).collect();
    let kind = kind_name(&object, &known)?;
    object.only(&[&["name", "type", "needs", "when"], effort_fields(kind, false), fields(kind)])?;
    let when = object.get("when").map(|_| condition(&object, "when")).transpose()?;
    let needs = match object.get("needs") {
        Some(Value::Array(_)) => Some(names.field(&object, "needs")?),
        Some(_) => return Err(wrong(&object.at("needs"), "is not an array")),
        None => None,
    };
    let effort = effort(&object, kind, Some(names))?;
    Ok(Draft { kind: read_kind(kind, &object, Some(names))?, object, when, effort, needs })
}

fn kind_name<'v>(object: &Object<'v>, known: &[&str]) -> Result<&'v str> {
    object.need("type")?;
    Ok(object.one_of("type", known)?.unwrap_or_default())
}

/// Fields that say how hard a kind of step is tried.
fn effort_fields(kind: &str, is_inner: bool) -> &'static [&'static str] {
    match kind {
        "condition" | "switch" | "stop" => &[],
        "wait" | "map" => &["timeout", "on_error"],
        "approval" => &["on_error"],
        _ if is_inner => &["type", "retry", "timeout", "on_error"],
        _ => &["retry", "timeout", "on_error"],
    }
}

/// Fields of a kind's own.
fn fields(kind: &str) -> &'static [&'static str] {
    match kind {
        "tool" | "http" => &["tool", "arguments"],
        "sql" => &["sql", "parameters"],
        "ask" => &["question", "mode", "knowledge", "model", "options"],
        "complete" => &["prompt", "system", "model", "options"],
        "complete_json" => &["prompt", "schema", "system", "model", "options"],
        "search" => &["query", "k", "source_types", "filter", "method"],
        "condition" => &["if", "then", "else"],
        "switch" => &["cases", "default"],
        "map" => &["over", "as", "step", "concurrency", "most"],
        "wait" => &["for", "until", "event", "match"],
        "approval" => &["title", "details", "approver_role", "self_approval", "lapse", "on_lapse"],
        "workflow" => &["workflow", "input"],
        _ => &["status", "output", "message"],
    }
}

/// `names` are there for a step of its own: an inner one cannot go to another.
fn effort(object: &Object, kind: &str, names: Option<&Names>) -> Result<Effort> {
    let timeout = object.interval("timeout")?;
    if matches!(kind, "sql" | "search") && timeout.is_some_and(|timeout| timeout > MOST_STATEMENT) {
        return Err(wrong(&object.at("timeout"), "is longer than the minute that a statement may take"));
    }
    Ok(Effort { retry: retry(object)?, timeout, on_error: on_error(object, "on_error", names)? })
}

fn retry(object: &Object) -> Result<Retry> {
    let usual = Retry { attempts: 1, delay: 10_000, factor: 2.0, most: 3_600_000 };
    let Some(value) = object.get("retry") else { return Ok(usual) };
    let place = object.at("retry");
    let object = Object::of(&place, value)?;
    object.only(&[&["attempts", "delay", "factor", "most"]])?;
    object.need("attempts")?;
    Ok(Retry {
        attempts: object.whole("attempts", 1..=20)?.unwrap_or(1) as u32,
        delay: object.interval("delay")?.unwrap_or(usual.delay),
        factor: object.number("factor", 1.0..=10.0)?.unwrap_or(usual.factor),
        most: object.interval("most")?.unwrap_or(usual.most),
    })
}

fn on_error(object: &Object, name: &str, names: Option<&Names>) -> Result<OnError> {
    let place = object.at(name);
    match (object.get(name), names) {
        (None, _) => Ok(OnError::Fail),
        (Some(Value::String(text)), _) if text == "fail" => Ok(OnError::Fail),
        (Some(Value::String(text)), _) if text == "skip" => Ok(OnError::Skip),
        (Some(value @ Value::Object(_)), Some(names)) => {
            let object = Object::of(&place, value)?;
            object.only(&[&["goto"]])?;
            let target = object.need_text("goto")?;
            Ok(OnError::Goto(names.find(target, &object.at("goto"))?))
        }
        (_, Some(_)) => Err(wrong(&place, "is neither \"fail\" nor \"skip\" nor {\"goto\": step}")),
        (_, None) => Err(wrong(&place, "is neither \"fail\" nor \"skip\"")),
    }
}

fn condition(object: &Object, name: &str) -> Result<Condition> {
    let place = object.at(name);
    match object.need(name)? {
        Value::String(text) => Condition::read(text, &place),
        _ => Err(wrong(&place, "is not an expression").hint("Write it as text: \"@.input.score >= 50\".")),
    }
}

fn template(object: &Object, name: &str) -> Result<Option<Template>> {
    object.get(name).map(|value| Template::read(value, &object.at(name))).transpose()
}

/// A template of a text: with no template in it, it is a text that is not empty.
fn template_text(object: &Object, name: &str) -> Result<Option<Template>> {
    match object.get(name) {
        Some(Value::String(text)) if text.trim().is_empty() => Err(wrong(&object.at(name), "is empty")),
        Some(Value::String(_)) | None => template(object, name),
        Some(_) => Err(wrong(&object.at(name), "is not a text")),
    }
}

fn need_template_text(object: &Object, name: &str) -> Result<Template> {
    let value = object.need(name)?;
    Ok(match template_text(object, name)? {
        Some(template) => template,
        None => Template::read(value, &object.at(name))?,
    })
}

/// An object with templates in it, or one template that gives an object; empty where it is left out.
fn template_object(object: &Object, name: &str) -> Result<Template> {
    let empty = json!({});
    let value = object.get(name).unwrap_or(&empty);
    let template = Template::read(value, &object.at(name))?;
    match value {
        Value::Object(_) => Ok(template),
        Value::String(_) if template.literal().is_none() => Ok(template),
        _ => Err(wrong(&object.at(name), "is neither an object nor a template")),
    }
}

fn owned(text: Option<&str>) -> Option<String> {
    text.map(str::to_owned)
}

fn read_kind(kind: &str, object: &Object, names: Option<&Names>) -> Result<StepKind> {
    match (kind, names) {
        ("tool", _) => Ok(StepKind::Tool {
            tool: object.need_text("tool")?.to_owned(),
            arguments: template_object(object, "arguments")?,
        }),
        ("http", _) => Ok(StepKind::Http {
            tool: object.need_text("tool")?.to_owned(),
            arguments: template_object(object, "arguments")?,
        }),
        ("sql", _) => sql(object),
        ("ask", _) => ask(object),
        ("complete" | "complete_json", _) => complete(kind, object),
        ("search", _) => search(object),
        ("workflow", _) => Ok(StepKind::Workflow {
            workflow: object.need_text("workflow")?.to_owned(),
            input: template_object(object, "input")?,
        }),
        ("condition", Some(names)) => {
            if object.get("then").is_none() && object.get("else").is_none() {
                return Err(wrong(&object.at("then"), "is missing, and so is \"else\""));
            }
            let (then, otherwise) = (names.field(object, "then")?, names.field(object, "else")?);
            Ok(StepKind::Condition { test: condition(object, "if")?, then, otherwise })
        }
        ("switch", Some(names)) => switch(object, names),
        ("map", Some(_)) => map(object),
        ("wait", Some(_)) => wait(object),
        ("approval", names) => approval(object, names),
        _ => stop(object),
    }
}

fn sql(object: &Object) -> Result<StepKind> {
    let sql = object.need_text("sql").map_err(|error| match error.message.ends_with("is read there") {
        true => error.hint("A value goes in by \"parameters\", and the statement takes it as $1 ->> 'name'."),
        false => error,
    })?;
    Ok(StepKind::Sql { sql: sql.to_owned(), parameters: template_object(object, "parameters")? })
}

fn ask(object: &Object) -> Result<StepKind> {
    Ok(StepKind::Ask {
        question: need_template_text(object, "question")?,
        mode: owned(object.text("mode")?),
        knowledge: object.truth("knowledge")?,
        model: owned(object.text("model")?),
        options: object.object("options")?,
    })
}

fn complete(kind: &str, object: &Object) -> Result<StepKind> {
    let schema = match kind {
        "complete_json" => Some(Value::Object({
            object.need("schema")?;
            object.object("schema")?
        })),
        _ => None,
    };
    Ok(StepKind::Complete {
        prompt: need_template_text(object, "prompt")?,
        system: owned(object.text("system")?),
        schema,
        model: owned(object.text("model")?),
        options: object.object("options")?,
    })
}

fn search(object: &Object) -> Result<StepKind> {
    let source_types = match object.get("source_types") {
        None => None,
        Some(value) => Some(
            value
                .as_array()
                .and_then(|types| types.iter().map(|one| one.as_str().map(str::to_owned)).collect())
                .ok_or_else(|| wrong(&object.at("source_types"), "is not an array of texts"))?,
        ),
    };
    Ok(StepKind::Search {
        query: need_template_text(object, "query")?,
        k: object.whole("k", 1..=100)?.map(|k| k as u32),
        source_types,
        filter: object.get("filter").map(|_| template_object(object, "filter")).transpose()?,
        method: owned(object.one_of("method", &["hybrid", "vector", "text"])?),
    })
}

fn switch(object: &Object, names: &Names) -> Result<StepKind> {
    let place = object.at("cases");
    let cases = object.need("cases")?.as_array().filter(|cases| !cases.is_empty());
    let cases = cases.ok_or_else(|| wrong(&place, "is not an array of cases"))?;
    let read = |(at, case): (usize, &Value)| {
        let place = format!("{place}[{at}]");
        let case = Object::of(&place, case)?;
        case.only(&[&["when", "then"]])?;
        case.need("then")?;
        Ok((condition(&case, "when")?, names.field(&case, "then")?))
    };
    let cases = cases.iter().enumerate().map(read).collect::<Result<_>>()?;
    Ok(StepKind::Switch { cases, default: names.field(object, "default")? })
}

fn map(object: &Object) -> Result<StepKind> {
    let over = Template::read(object.need("over")?, &object.at("over"))?;
    if !matches!(object.get("over"), Some(Value::Array(_)))
        && !matches!(object.get("over"), Some(Value::String(_)) if over.literal().is_none())
    {
        return Err(wrong(&object.at("over"), "is neither an array nor a template"));
    }
    let name = object.text("as")?.unwrap_or("item");
    if !is_name(name) || ROOTS.contains(&name) || name == "index" {
        return Err(wrong(&object.at("as"), format!("\"{name}\" cannot name an element")));
    }
    let place = object.at("step");
    let inner = Object::of(&place, object.need("step")?)?;
    let kind = kind_name(&inner, &INNER)?;
    inner.only(&[effort_fields(kind, true), fields(kind)])?;
    Ok(StepKind::Map(Each {
        over,
        name: name.to_owned(),
        effort: effort(&inner, kind, None)?,
        inner: Box::new(read_kind(kind, &inner, None)?),
        concurrency: object.whole("concurrency", 1..=1000)?.unwrap_or(5) as u32,
        most: object.whole("most", 1..=10_000)?.unwrap_or(1000) as u32,
    }))
}

fn wait(object: &Object) -> Result<StepKind> {
    let given: Vec<&str> = ["for", "until", "event"].into_iter().filter(|name| object.get(name).is_some()).collect();
    let [one] = given[..] else {
        return Err(wrong(object.place, "a wait has one of \"for\", \"until\" and \"event\""));
    };
    if one != "event"
        && let Some(name) = ["match", "timeout"].into_iter().find(|name| object.get(name).is_some())
    {
        return Err(wrong(&object.at(name), "goes with \"event\" only"));
    }
    Ok(StepKind::Wait(match one {
        "for" => Until::For(object.interval("for")?.unwrap_or_default()),
        "until" => Until::Time(need_template_text(object, "until")?),
        _ => Until::Event {
            name: object.need_text("event")?.to_owned(),
            matching: object.get("match").map(|_| template_object(object, "match")).transpose()?,
        },
    }))
}

fn approval(object: &Object, names: Option<&Names>) -> Result<StepKind> {
    Ok(StepKind::Approval {
        title: need_template_text(object, "title")?,
        details: template(object, "details")?,
        approver_role: object.one_of("approver_role", &["member", "admin", "owner"])?.unwrap_or("admin").to_owned(),
        self_approval: object.truth("self_approval")?.unwrap_or(false),
        lapse: object.interval("lapse")?.unwrap_or(DAY),
        on_lapse: on_error(object, "on_lapse", names)?,
    })
}

fn stop(object: &Object) -> Result<StepKind> {
    object.need("status")?;
    Ok(StepKind::Stop {
        succeeded: object.one_of("status", &["succeeded", "failed"])? == Some("succeeded"),
        output: template(object, "output")?,
        message: template_text(object, "message")?,
    })
}

/// Joins the drafts to a graph without circles; the order is one in which each step comes after all that it needs.
fn graph(drafts: Vec<Draft>, names: &Names) -> Result<(Vec<Step>, Vec<usize>)> {
    let mut chosen_by = vec![Vec::new(); drafts.len()];
    for (at, draft) in drafts.iter().enumerate() {
        let mut chosen = draft.kind.branches();
        if let OnError::Goto(to) = draft.effort.on_error {
            chosen.push(to);
        }
        chosen.sort_unstable();
        chosen.dedup();
        chosen.into_iter().for_each(|to| chosen_by[to].push(at));
    }
    let places: Vec<String> = drafts.iter().map(|draft| draft.object.place.to_owned()).collect();
    let steps: Vec<Step> = drafts
        .into_iter()
        .zip(chosen_by)
        .enumerate()
        .map(|(at, (draft, chosen_by))| {
            let mut needs = match draft.needs {
                Some(needs) => needs,
                None if chosen_by.is_empty() => at.checked_sub(1).into_iter().collect(),
                None => Vec::new(),
            };
            needs.extend(&chosen_by);
            needs.sort_unstable();
            needs.dedup();
            let Draft { kind, when, effort, .. } = draft;
            Step { name: names.0[at].to_owned(), kind, needs, chosen_by, when, effort }
        })
        .collect();
    let order = order(&steps);
    match (0..steps.len()).find(|step| !order.contains(step)) {
        None => Ok((steps, order)),
        Some(step) => {
            let circle = circle(&steps, &order, step);
            let named: Vec<&str> = circle.iter().map(|step| names.0[*step]).collect();
            let place = &places[circle.first().copied().unwrap_or(step)];
            Err(wrong(place, format!("steps wait for each other in a circle: {}", named.join(" -> "))))
        }
    }
}

/// Each step after all that it needs; those in a circle, or after one, are left out.
fn order(steps: &[Step]) -> Vec<usize> {
    let mut order = Vec::with_capacity(steps.len());
    let mut placed = Steps::default();
    loop {
        let before = order.len();
        for (at, step) in steps.iter().enumerate() {
            if !placed.contains(at) && step.needs.iter().all(|need| placed.contains(*need)) {
                placed.insert(at);
                order.push(at);
            }
        }
        if order.len() == before {
            return order;
        }
    }
}

/// A circle that can be reached from a step which is left out of the order, from a step back to itself.
fn circle(steps: &[Step], order: &[usize], from: usize) -> Vec<usize> {
    let (mut way, mut step) = (Vec::new(), from);
    loop {
        if let Some(at) = way.iter().position(|other| *other == step) {
            way.push(step);
            let mut circle = way.split_off(at);
            // Found against the arrows, shown along them.
            circle.reverse();
            return circle;
        }
        way.push(step);
        match steps[step].needs.iter().find(|need| !order.contains(need)) {
            Some(need) => step = *need,
            None => return way,
        }
    }
}

fn before(steps: &[Step], order: &[usize]) -> Vec<Steps> {
    let mut before = vec![Steps::default(); steps.len()];
    for &at in order {
        for &need in &steps[at].needs {
            let earlier = before[need];
            before[at].insert(need);
            before[at].extend(earlier);
        }
    }
    before
}

/// What a step's templates and expressions refer to is there by then.
fn check_references(step: &Step, place: &str, before: Steps, names: &Names) -> Result<()> {
    if let Some(when) = &step.when {
        check(when.references().iter(), &ROOTS, &format!("{place}.when"), before, names)?;
    }
    check(step.kind.references().into_iter(), &ROOTS, place, before, names)?;
    if let StepKind::Map(each) = &step.kind {
        let known: Vec<&str> = ROOTS.into_iter().chain([each.name.as_str(), "index"]).collect();
        check(each.inner.references().into_iter(), &known, &format!("{place}.step"), before, names)?;
    }
    Ok(())
}

fn check<'r>(
    references: impl Iterator<Item = &'r Reference>,
    known: &[&str],
    place: &str,
    before: Steps,
    names: &Names,
) -> Result<()> {
    for Reference { root, step } in references {
        if !known.contains(&root.as_str()) {
            let error = wrong(place, format!("value \"{root}\" does not exist"));
            return Err(match nearest(root, known.iter().copied()) {
                Some(near) => error.hint(format!("Perhaps you meant \"{near}\".")),
                None => error.hint(format!("A path begins with one of {}.", known.join(", "))),
            });
        }
        if let Some(name) = step
            && !before.contains(names.find(name, place)?)
        {
            return Err(wrong(place, format!("step \"{name}\" does not come before this one"))
                .hint("Only what a step needs, and what that needs, has ended when it begins."));
        }
    }
    Ok(())
}
