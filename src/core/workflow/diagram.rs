//! Diagrams of definitions and runs as Mermaid flowcharts. Names and titles come in as anyone wrote them; in the text
//! that goes out they are labels and nothing else.

use super::definition::{Definition, OnError, Step, StepKind, Until};
use super::row::{Row, StepStatus};
use std::fmt::Write;

/// Characters of a label's second line at most.
const MOST_LABEL: usize = 60;

/// Colours of the states that a run shows.
const CLASSES: [(StepStatus, &str); 9] = [
    (StepStatus::Pending, "fill:#f3f4f6,stroke:#9ca3af,color:#374151"),
    (StepStatus::Ready, "fill:#e0f2fe,stroke:#0284c7,color:#0c4a6e"),
    (StepStatus::Running, "fill:#dbeafe,stroke:#2563eb,color:#1e3a8a"),
    (StepStatus::Succeeded, "fill:#dcfce7,stroke:#16a34a,color:#14532d"),
    (StepStatus::Failed, "fill:#fee2e2,stroke:#dc2626,color:#7f1d1d"),
    (StepStatus::Skipped, "fill:#ffffff,stroke:#9ca3af,color:#6b7280,stroke-dasharray:4"),
    (StepStatus::Cancelled, "fill:#e5e7eb,stroke:#6b7280,color:#374151"),
    (StepStatus::Waiting, "fill:#fef9c3,stroke:#ca8a04,color:#713f12"),
    (StepStatus::Uncertain, "fill:#ffedd5,stroke:#ea580c,color:#7c2d12"),
];

/// A definition's graph; with rows, coloured by their states.
pub fn mermaid(definition: &Definition, rows: Option<&[Row]>) -> String {
    let mut text = String::from("flowchart TD\n");
    for (at, step) in definition.steps.iter().enumerate() {
        let (open, close) = shape(&step.kind);
        line(&mut text, format_args!("  s{at}{open}\"{}\"{close}", label(step)));
    }
    for (at, step) in definition.steps.iter().enumerate() {
        for &need in step.needs.iter().filter(|need| !step.chosen_by.contains(need)) {
            line(&mut text, format_args!("  s{need} --> s{at}"));
        }
        for &by in &step.chosen_by {
            for why in reasons(&definition.steps[by], at) {
                let arrow = if matches!(why.as_str(), "error" | "lapse") { "-.->" } else { "-->" };
                line(&mut text, format_args!("  s{by} {arrow}|\"{}\"| s{at}", escaped(&why)));
            }
        }
    }
    if let Some(rows) = rows {
        classes(&mut text, definition, rows);
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments) {
    // Writing into a string does not fail.
    let _ = writeln!(text, "{line}");
}

fn classes(text: &mut String, definition: &Definition, rows: &[Row]) {
    for (status, style) in CLASSES {
        line(text, format_args!("  classDef {} {style}", status.name()));
    }
    for at in 0..definition.steps.len() {
        let row = rows.iter().find(|row| row.place.step == at && row.place.item.is_none());
        let status = row.map_or(StepStatus::Pending, |row| row.status);
        line(text, format_args!("  class s{at} {}", status.name()));
    }
}

/// Brackets around a label: what chooses is a rhombus, what waits is round.
fn shape(kind: &StepKind) -> (&'static str, &'static str) {
    match kind {
        StepKind::Condition { .. } | StepKind::Switch { .. } => ("{", "}"),
        StepKind::Wait(_) | StepKind::Approval { .. } => ("(", ")"),
        StepKind::Map(_) | StepKind::Workflow { .. } => ("[[", "]]"),
        StepKind::Stop { .. } => ("([", "])"),
        _ => ("[", "]"),
    }
}

/// Why a step is chosen by another one.
fn reasons(by: &Step, step: usize) -> Vec<String> {
    let mut reasons = Vec::new();
    match &by.kind {
        StepKind::Condition { then, otherwise, .. } => {
            reasons.extend(then.contains(&step).then(|| "yes".to_owned()));
            reasons.extend(otherwise.contains(&step).then(|| "no".to_owned()));
        }
        StepKind::Switch { cases, default } => {
            let cases = cases.iter().enumerate().filter(|(_, (_, then))| then.contains(&step));
            reasons.extend(cases.map(|(at, _)| format!("case {}", at + 1)));
            reasons.extend(default.contains(&step).then(|| "default".to_owned()));
        }
        StepKind::Approval { on_lapse, .. } if *on_lapse == OnError::Goto(step) => reasons.push("lapse".to_owned()),
        _ => {}
    }
    reasons.extend((by.effort.on_error == OnError::Goto(step)).then(|| "error".to_owned()));
    reasons
}

fn label(step: &Step) -> String {
    let what = match &step.kind {
        StepKind::Tool { tool, .. } | StepKind::Http { tool, .. } => Some(tool.clone()),
        StepKind::Workflow { workflow, .. } => Some(workflow.clone()),
        StepKind::Wait(Until::Event { name, .. }) => Some(name.clone()),
        StepKind::Approval { title, .. } => title.literal().and_then(|title| title.as_str()).map(str::to_owned),
        StepKind::Map(each) => Some(each.inner.name().to_owned()),
        _ => None,
    };
    let what = what.map_or_else(String::new, |what| {
        let short: String = what.chars().take(MOST_LABEL).collect();
        format!(" {}", escaped(&short))
    });
    format!("{}<br/>{}{what}", escaped(&step.name), step.kind.name())
}

/// Letters, digits, spaces and what means nothing in Mermaid, Markdown or HTML; all else by its number.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            _ if letter.is_alphanumeric() => escaped.push(letter),
            ' ' | '_' | '.' | ',' => escaped.push(letter),
            _ if letter.is_control() || letter.is_whitespace() => escaped.push(' '),
            _ => {
                let _ = write!(escaped, "#{};", u32::from(letter));
            }
        }
    }
    escaped
}
