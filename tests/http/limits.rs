//! Turns, limits and circuits.

use super::*;

#[tokio::test]
async fn a_provider_that_keeps_failing_is_left_alone() {
    let (server, other) = (Server::start().await, Server::start().await);
    server.answer_by(|_| Answer::status(503, "{}"));
    let room = room();
    let mut route_1 = route(Kind::OpenAi, &server);
    route_1.provider.max_retries = 0;
    for _ in 0..5 {
        chat(&room, call(&[&route_1])).await;
    }
    assert_eq!(server.count(), 5);
    let (_, end) = chat(&room, call(&[&route_1])).await;
    assert_eq!((server.count(), end.attempts, sqlstate(&end)), (5, 0, "38000"));
    let error = end.error.unwrap();
    assert!(error.detail.unwrap().contains("seconds") && error.hint.is_some());
    let state = room.states().into_iter().find(|state| state.id == route_1.provider.id).unwrap();
    assert_eq!((state.circuit.as_str(), state.requests, state.errors), ("open", 5, 5));
    assert!(state.retry_seconds.is_some_and(|seconds| seconds <= 5) && state.last_error.is_some());
    let (_, end) = chat(&room, call(&[&route_1, &route(Kind::OpenAi, &other)])).await;
    assert_eq!((end.outcome, server.count(), other.count()), (Outcome::Succeeded, 5, 1));
    // What is our fault says nothing of the provider.
    server.answer_by(|_| Answer::status(400, "{}"));
    let route_2 = route(Kind::OpenAi, &server);
    for _ in 0..7 {
        chat(&room, call(&[&route_2])).await;
    }
    assert_eq!(server.count(), 12);
}

#[tokio::test]
async fn workspaces_take_turns_at_a_provider() {
    let server = Server::start().await;
    let slow = Say { delay: Duration::from_millis(5), ..Say::default() };
    server.answer_by(move |_| Answer::Say(slow.clone()));
    let room = room();
    let mut route = route(Kind::OpenAi, &server);
    route.provider.max_concurrent = 1;
    let mut tasks = Vec::new();
    for (workspace, count) in [(1, 6), (2, 2)] {
        for _ in 0..count {
            let mut call = call(&[&route]);
            call.asker = asker(workspace);
            call.chat.messages = vec![Message::text(Role::User, format!("workspace {workspace}"))];
            let asked = room.clone();
            tasks.push(tokio::spawn(async move { chat(&asked, call).await.1 }));
            let all = tasks.len() as u32;
            until("a call waits", || room.states().iter().any(|state| state.requests as u32 + state.waiting >= all))
                .await;
        }
    }
    for task in tasks {
        assert_eq!(task.await.unwrap().outcome, Outcome::Succeeded);
    }
    let order: Vec<bool> =
        server.seen().iter().map(|seen| String::from_utf8_lossy(&seen.body).contains("workspace 2")).collect();
    let last = order.iter().rposition(|second| *second).unwrap();
    assert!(last < 7, "the second workspace waits for all of the first: {order:?}");
}

#[tokio::test]
async fn a_turn_that_does_not_come_in_time_is_an_error_that_names_the_limit() {
    let server = Server::start().await;
    let room = room();
    let mut route = route(Kind::OpenAi, &server);
    route.provider.requests_per_minute = 1;
    assert_eq!(chat(&room, call(&[&route])).await.1.outcome, Outcome::Succeeded);
    let (_, end) = chat(&room, ChatCall { timeout_ms: 50, ..call(&[&route]) }).await;
    assert_eq!((sqlstate(&end), end.attempts, server.count()), ("53000", 0, 1));
    assert!(end.error.unwrap().detail.unwrap().contains("1 requests per minute"));
    assert_eq!(end.usage, Usage::default());
}
