//! Texts embedded by a provider.

use super::*;

#[tokio::test]
async fn texts_are_embedded_in_order_and_normalised() {
    let server = Server::start().await;
    let room = room();
    let inputs: Vec<String> = (0..5000).map(|number| format!("text number {number}")).collect();
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    for kind in [Kind::OpenAi, Kind::Gemini, Kind::Ollama] {
        let before = server.count();
        let (vectors, end) = embeddings(&room, embed(&route(kind, &server), &inputs)).await;
        assert_eq!((end.outcome, vectors.len()), (Outcome::Succeeded, inputs.len()), "{kind:?} {end:?}");
        assert!(server.count() - before > 1, "{kind:?}");
        assert_eq!(end.attempts as usize, server.count() - before);
        assert!(end.usage.input >= 15_000, "{kind:?} {end:?}");
        for (text, vector) in inputs.iter().zip(&vectors) {
            let expected = provider::embedding(text, 8);
            let length = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!(vector.iter().zip(&expected).all(|(a, b)| (a - b / length).abs() < 1e-5), "{kind:?} {text}");
        }
        assert_eq!(records(&room).await.pop().unwrap().call, end);
    }
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_halved() {
    let server = Server::start().await;
    server.answer_by(|seen| match seen.json()["input"].as_array().map_or(1, Vec::len) {
        0..=3 => Answer::Say(Say::default()),
        _ => Answer::status(413, "{\"error\":{\"message\":\"too large\"}}"),
    });
    let inputs = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let room = room();
    let (vectors, end) = embeddings(&room, embed(&route(Kind::OpenAi, &server), &inputs)).await;
    assert_eq!((end.outcome, vectors.len()), (Outcome::Succeeded, 10), "{end:?}");
    for (text, vector) in inputs.iter().zip(&vectors) {
        assert!(vector[0].signum() == provider::embedding(text, 8)[0].signum());
    }
    server.answer_by(|_| Answer::status(413, "{\"error\":{\"message\":\"too large\"}}"));
    let (vectors, end) = embeddings(&room, embed(&route(Kind::OpenAi, &server), &["a", "b"])).await;
    assert_eq!((vectors.len(), sqlstate(&end), end.attempts), (0, "38000", 2 + u32::from(end.attempts > 2)));
    assert!(end.error.unwrap().detail.unwrap().contains("number 1 of 2"));
}

#[tokio::test]
async fn the_same_texts_asked_for_at_once_are_sent_once() {
    let server = Server::start().await;
    let slow = Say { delay: Duration::from_millis(100), ..Say::default() };
    server.answer_by(move |_| Answer::Say(slow.clone()));
    let room = room();
    let route = route(Kind::OpenAi, &server);
    let ask = |texts: &[&str], workspace| {
        let mut call = embed(&route, texts);
        call.asker = asker(workspace);
        let room = room.clone();
        tokio::spawn(async move { embeddings(&room, call).await })
    };
    let calls = [ask(&["one", "two"], 1), ask(&["one", "two"], 2), ask(&["one", "other"], 3)];
    let mut tokens = 0;
    let mut all = Vec::new();
    for call in calls {
        let (vectors, end) = call.await.unwrap();
        assert_eq!(end.outcome, Outcome::Succeeded);
        tokens += end.usage.input;
        all.push(vectors);
    }
    assert_eq!(all[0], all[1]);
    assert_ne!(all[0], all[2]);
    assert_eq!((server.count(), tokens), (2, 4));
    assert_eq!(records(&room).await.len(), 3);
    // The first of two goes away; the other is answered all the same.
    let (first, second) = (ask(&["three"], 1), ask(&["three"], 2));
    until("the request", || server.count() == 3).await;
    first.abort();
    assert_eq!(second.await.unwrap().1.outcome, Outcome::Succeeded);
    assert_eq!((server.count(), server.gone().len()), (3, 0));
    let outcomes: Vec<_> = records(&room).await.iter().skip(3).map(|record| record.call.outcome).collect();
    assert_eq!(outcomes, [Outcome::Cancelled, Outcome::Succeeded]);
}

#[tokio::test]
async fn work_that_nobody_waits_for_waits_for_a_provider_that_is_left_alone() {
    let server = Server::start().await;
    let room = room();
    let mut route = route(Kind::OpenAi, &server);
    route.provider.max_retries = 0;
    for _ in 0..5 {
        server.next(Answer::with_headers(429, &[("retry-after", "1")], "{}"));
        assert_eq!(sqlstate(&embeddings(&room, embed(&route, &["a"])).await.1), "53000");
    }
    // Whoever waits is told so at once, and nothing is sent.
    let (_, end) = embeddings(&room, embed(&route, &["a"])).await;
    assert!(end.error.unwrap().message.contains("left alone"));
    assert_eq!(server.count(), 5);
    let patient = ["b", "c", "d"].map(|text| {
        let (room, call) = (room.clone(), EmbedCall { patient: true, ..embed(&route, &[text]) });
        tokio::spawn(async move { embeddings(&room, call).await })
    });
    for call in patient {
        let (vectors, end) = call.await.unwrap();
        assert_eq!((vectors.len(), end.outcome, end.attempts), (1, Outcome::Succeeded, 1), "{end:?}");
    }
}
