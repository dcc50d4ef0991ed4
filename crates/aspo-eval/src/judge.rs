//! Judges: a chat model behind any OpenAI-compatible endpoint.
//!
//! What the judged model wrote is pasted into the judge's prompt as the benchmarks publish it. To this program it is
//! data: nothing in a question, an answer or a reply is ever run, opened or followed.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result, quote};
use crate::file;

mod transcript;

pub use transcript::{Reply, Usage, total_usage};
use transcript::{lines, now, read_transcript};

/// No single wait between two tries is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// No reply is longer; a longer one is an error of the endpoint.
const LONGEST_REPLY: u64 = 4 << 20;

/// Which judge, and how it is asked.
#[derive(Debug, Clone)]
pub struct JudgeConfig {
    /// The endpoint, up to and without `/chat/completions`, as `https://api.openai.com/v1`.
    pub address: String,
    /// The judge's model name. Scores of different judges are not comparable.
    pub model: String,
    /// The environment variable that holds the key (default `OPENAI_API_KEY`). Unset or empty: no key is sent.
    pub key_env: String,
    /// The temperature of a first try, instead of the benchmark's published one.
    pub temperature: Option<f64>,
    /// How often a failed request is tried again (default 5).
    pub retries: u32,
    /// The wait before the first retry; it doubles with each, up to a minute (default 2 s).
    pub backoff: Duration,
    /// How long one request may take (default 120 s).
    pub timeout: Duration,
    /// How many requests are under way at once (default 4).
    pub concurrency: usize,
}

impl JudgeConfig {
    /// The defaults, for this endpoint and model.
    pub fn new(address: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            model: model.into(),
            key_env: "OPENAI_API_KEY".into(),
            temperature: None,
            retries: 5,
            backoff: Duration::from_secs(2),
            timeout: Duration::from_secs(120),
            concurrency: 4,
        }
    }
}

/// One thing to be judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The question's id.
    pub id: String,
    /// The run, from 1.
    pub run: usize,
    /// The system turn, where the benchmark has one.
    pub system: Option<&'static str>,
    /// Prompt and temperature of each try: the next is made while the reply cannot be read.
    pub tries: Vec<(String, f64)>,
    /// The longest reply, in tokens.
    pub max_tokens: u32,
    /// Where a reply ends, if not by itself.
    pub stop: Option<&'static str>,
}

/// A key that is never printed.
struct Key(Option<String>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "(set)" } else { "(none)" })
    }
}

/// A judge that can be asked.
#[derive(Debug)]
pub struct Judge {
    config: JudgeConfig,
    key: Key,
    agent: ureq::Agent,
}

/// Why a request failed, and whether another try can help.
struct Failure {
    message: String,
    again: bool,
    wait: Option<Duration>,
}

impl Judge {
    /// A judge by its endpoint. The key is read from the environment, here and only here.
    ///
    /// # Errors
    /// An address that is not `http://…` or `https://…`, no model name, a concurrency of 0.
    pub fn new(config: JudgeConfig) -> Result<Self> {
        let scheme = config.address.split_once("://");
        let Some(("http" | "https", rest)) = scheme else {
            return Err(Error::Option(format!(
                "judge address {} is not one: give it as http://… or https://…, up to /v1",
                quote(&config.address)
            )));
        };
        if config.model.is_empty() {
            return Err(Error::Option(
                "the judge's model name is empty: give the endpoint's name for it".into(),
            ));
        }
        if config.concurrency == 0 {
            return Err(Error::Option("judge concurrency is 0: give at least 1".into()));
        }
        let mut agent = ureq::Agent::config_builder()
            .timeout_global(Some(config.timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("aspo-eval/", env!("CARGO_PKG_VERSION")));
        // An endpoint on this machine is never reached through a proxy.
        if ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| rest.starts_with(host)) {
            agent = agent.proxy(None);
        }
        let key = Key(std::env::var(&config.key_env).ok().filter(|key| !key.is_empty()));
        let agent = agent.build().new_agent();
        Ok(Self { config, key, agent })
    }

    /// Asks everything that `transcript` does not hold yet, several at a time, and returns all replies in the order of
    /// the requests. Each reply is written to `transcript` (JSON lines) as it arrives, so that nothing is paid for
    /// twice; at the end the file is put in the order of the requests. While `readable` says no, a request's next try
    /// is made; the reply to the last one stands.
    ///
    /// # Errors
    /// A transcript of other requests; an endpoint that refuses, or fails through all retries.
    pub fn ask(
        &self,
        requests: &[Request],
        transcript: &Path,
        readable: fn(&str) -> bool,
    ) -> Result<Vec<Reply>> {
        let io = |source| Error::Io { path: transcript.into(), source };
        let known = read_transcript(transcript)?;
        let mut replies: Vec<Option<Reply>> = vec![None; requests.len()];
        for (request, slot) in requests.iter().zip(&mut replies) {
            let Some(reply) = known.iter().find(|r| r.id == request.id && r.run == request.run) else {
                continue;
            };
            if !request.tries.iter().any(|(prompt, _)| *prompt == reply.prompt) {
                return Err(Error::OtherRun {
                    path: transcript.into(),
                    found: format!("question {} with another prompt", request.id),
                    expected: "the prompts of these answers".into(),
                });
            }
            *slot = Some(reply.clone());
        }
        let open: Vec<usize> = (0..requests.len()).filter(|&at| replies[at].is_none()).collect();
        if !open.is_empty() {
            if let Some(parent) = transcript.parent().filter(|p| !p.as_os_str().is_empty()) {
                std::fs::create_dir_all(parent).map_err(io)?;
            }
            // The file is rewritten whole first, so that a line cut off by a crash does not stay in its middle.
            file::write(transcript, &lines(known.iter()))?;
            let out = std::fs::OpenOptions::new().append(true).open(transcript).map_err(io)?;
            let done = Mutex::new((out, &mut replies));
            let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
            let work = || -> Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    let Some(&at) = open.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    let reply = self.judge(&requests[at], readable)?;
                    let mut done = done.lock().expect("no worker panics while it writes");
                    done.0.write_all(&lines([&reply])).map_err(io)?;
                    done.1[at] = Some(reply);
                }
                Ok(())
            };
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..self.config.concurrency.min(open.len()))
                    .map(|_| scope.spawn(|| work().inspect_err(|_| stop.store(true, Ordering::Relaxed))))
                    .collect();
                let results: Vec<_> =
                    workers.into_iter().map(|w| w.join().expect("a worker returns its errors")).collect();
                results.into_iter().collect::<Result<()>>()
            })?;
        }
        let replies: Vec<Reply> = replies.into_iter().flatten().collect();
        file::write(transcript, &lines(&replies))?;
        Ok(replies)
    }

    /// One request, try by try.
    fn judge(&self, request: &Request, readable: fn(&str) -> bool) -> Result<Reply> {
        let mut reply = Reply {
            id: request.id.clone(),
            run: request.run,
            judge_model: self.config.model.clone(),
            date: String::new(),
            prompt: String::new(),
            replies: Vec::new(),
            usage: Usage::default(),
        };
        let first = request.tries.first().map_or(0.0, |(_, temperature)| *temperature);
        let shift = self.config.temperature.map_or(0.0, |own| own - first);
        for (prompt, temperature) in &request.tries {
            let mut messages = Vec::new();
            if let Some(system) = request.system {
                messages.push(json!({"role": "system", "content": system}));
            }
            messages.push(json!({"role": "user", "content": prompt}));
            let mut body = json!({
                "model": self.config.model,
                "messages": messages,
                "temperature": temperature + shift,
                "max_tokens": request.max_tokens,
            });
            if let Some(stop) = request.stop {
                body["stop"] = json!([stop]);
            }
            let text = self.send(&request.id, &body, &mut reply)?;
            reply.prompt = prompt.clone();
            reply.date = now();
            reply.replies.push(text);
            if readable(reply.text()) {
                break;
            }
        }
        Ok(reply)
    }

    /// Sends one body, again after failures that can pass.
    fn send(&self, id: &str, body: &Value, reply: &mut Reply) -> Result<String> {
        let mut wait = self.config.backoff;
        let mut attempts = 0;
        loop {
            attempts += 1;
            reply.usage.requests += 1;
            let failure = match self.post(body, reply) {
                Ok(text) => return Ok(text),
                Err(failure) => failure,
            };
            if !failure.again || attempts > self.config.retries {
                return Err(Error::Judge {
                    address: self.config.address.clone(),
                    id: id.to_owned(),
                    message: failure.message,
                    attempts,
                });
            }
            std::thread::sleep(failure.wait.unwrap_or(wait).min(LONGEST_WAIT));
            wait = wait.saturating_mul(2);
        }
    }

    fn post(&self, body: &Value, reply: &mut Reply) -> Result<String, Failure> {
        let passing = |message: String| Failure { message, again: true, wait: None };
        let url = format!("{}/chat/completions", self.config.address.trim_end_matches('/'));
        let mut request = self.agent.post(&url);
        if let Key(Some(key)) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = request.send_json(body).map_err(|e| match e {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Failure { message: format!("cannot be asked: {e}"), again: false, wait: None }
            }
            e => passing(format!("no reply: {e}")),
        })?;
        let status = response.status().as_u16();
        let asked = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
        let text = response
            .body_mut()
            .with_config()
            .limit(LONGEST_REPLY)
            .read_to_string()
            .map_err(|e| passing(format!("a reply that cannot be read: {e}")))?;
        if status != 200 {
            let hint = match status {
                401 | 403 => {
                    format!(" (the key is read from the environment variable {})", self.config.key_env)
                }
                _ => String::new(),
            };
            return Err(Failure {
                message: format!("status {status}{hint}: {}", quote(&text)),
                again: matches!(status, 408 | 409 | 425 | 429 | 500..),
                wait: asked.map(Duration::from_secs),
            });
        }
        let value: Value = serde_json::from_str(&text)
            .map_err(|_| passing(format!("a reply that is no JSON: {}", quote(&text))))?;
        let content = value["choices"][0]["message"]["content"].as_str();
        let content =
            content.ok_or_else(|| passing(format!("a reply without a message: {}", quote(&text))))?;
        let tokens = |name: &str| value["usage"][name].as_u64().unwrap_or(0);
        reply.usage.prompt_tokens += tokens("prompt_tokens");
        reply.usage.completion_tokens += tokens("completion_tokens");
        if let Some(model) = value["model"].as_str() {
            reply.judge_model = model.to_owned();
        }
        Ok(content.to_owned())
    }
}
