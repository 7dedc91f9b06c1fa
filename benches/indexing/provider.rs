//! A provider of embeddings that takes as long for each request as it is told, and says the same of every text.
//!
//! Arguments: milliseconds, numbers in an embedding, `faults` for one error 500 in ten requests and five seconds of 429 in
//! the middle. Prints its port. Speaks the embeddings of OpenAI's protocol, in base64 where that is asked for.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use base64::Engine;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Texts embedded before the rate limit strikes.
const MIDDLE: usize = 8000;

struct Provider {
    latency: Duration,
    base64: String,
    numbers: String,
    faults: bool,
    requests: AtomicUsize,
    texts: AtomicUsize,
    limited: Mutex<Option<Instant>>,
}

impl Provider {
    fn reply(&self, body: &[u8]) -> (u16, String, String) {
        let request: serde_json::Value = serde_json::from_slice(body).unwrap();
        let count = request["input"].as_array().map_or(1, Vec::len);
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        if self.faults {
            let mut limited = self.limited.lock().unwrap();
            if limited.is_none() && self.texts.load(Ordering::SeqCst) >= MIDDLE {
                *limited = Some(Instant::now() + Duration::from_secs(5));
            }
            if let Some(left) = limited.and_then(|until| until.checked_duration_since(Instant::now())) {
                let wait = format!("retry-after: {}\r\n", left.as_secs() + 1);
                return (
                    429,
                    wait,
                    r#"{"error":{"message":"slow down","type":"rate_limit_error","code":"rate_limit_exceeded"}}"#
                        .into(),
                );
            }
            if number % 10 == 9 {
                return (500, String::new(), r#"{"error":{"message":"oops","type":"server_error"}}"#.into());
            }
        }
        self.texts.fetch_add(count, Ordering::SeqCst);
        let vector = if request["encoding_format"] == "base64" { &self.base64 } else { &self.numbers };
        let mut text = String::with_capacity(count * (vector.len() + 64) + 128);
        text.push_str(r#"{"object":"list","data":["#);
        for index in 0..count {
            let comma = if index == 0 { "" } else { "," };
            text.push_str(&format!(r#"{comma}{{"object":"embedding","index":{index},"embedding":{vector}}}"#));
        }
        text.push_str(&format!(r#"],"model":"m","usage":{{"prompt_tokens":{0},"total_tokens":{0}}}}}"#, count * 20));
        (200, String::new(), text)
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let (mut heard, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            let head = heard.windows(4).position(|four| four == b"\r\n\r\n");
            let whole = head.and_then(|head| {
                let text = String::from_utf8_lossy(&heard[..head]).to_ascii_lowercase();
                let length: usize = text.split("content-length: ").nth(1)?.split("\r\n").next()?.parse().ok()?;
                (heard.len() >= head + 4 + length).then_some((head + 4, length))
            });
            let Some((start, length)) = whole else {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(count) => heard.extend_from_slice(&buffer[..count]),
                }
                continue;
            };
            let began = Instant::now();
            let (status, headers, body) = self.reply(&heard[start..start + length]);
            heard.drain(..start + length);
            tokio::time::sleep_until((began + self.latency).into()).await;
            let head = format!(
                "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
                body.len()
            );
            if stream.write_all(head.as_bytes()).await.is_err() || stream.write_all(body.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let dimensions: usize = arguments[2].parse().unwrap();
    // As long as real ones are when they are written out.
    let numbers: Vec<f32> = (0..dimensions).map(|n| ((n % 7) as f32 - 3.0) * 0.012_345_678).collect();
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let provider = Arc::new(Provider {
        latency: Duration::from_millis(arguments[1].parse().unwrap()),
        base64: format!("\"{}\"", base64::engine::general_purpose::STANDARD.encode(bytes)),
        numbers: serde_json::to_string(&numbers).unwrap(),
        faults: arguments.get(3).is_some_and(|word| word == "faults"),
        requests: AtomicUsize::new(0),
        texts: AtomicUsize::new(0),
        limited: Mutex::new(None),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let _ = stream.set_nodelay(true);
        tokio::spawn(Arc::clone(&provider).serve(stream));
    }
}
