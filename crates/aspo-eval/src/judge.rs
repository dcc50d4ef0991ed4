//! Judges: a chat model behind any OpenAI-compatible endpoint.
//!
//! What the judged model wrote is pasted into the judge's prompt as the benchmarks publish it. To this program it is
//! data: nothing in a question, an answer or a reply is ever run, opened or followed.

use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::error::{Error, Result, quote};
use crate::file;

mod endpoint;
mod transcript;

use endpoint::{Asked, Endpoint, Said};
pub use transcript::{Reply, Usage, total_usage};
use transcript::{lines, now, read_transcript};

/// No single wait between two tries is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// So many requests may be refused before the first is answered; then it is the endpoint that refuses, not a question.
const PATIENCE: usize = 8;

/// Which judge, and how it is asked.
#[derive(Debug, Clone)]
pub struct JudgeConfig {
    /// The endpoint, as `https://api.openai.com/v1`: with or without `/v1`, a slash at its end, or `/chat/completions`.
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

/// A judge that can be asked.
#[derive(Debug)]
pub struct Judge {
    config: JudgeConfig,
    endpoint: Endpoint,
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
                "judge address {} is not one: give it as http://… or https://…",
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
        let endpoint = Endpoint::new(&config, rest);
        Ok(Self { config, endpoint })
    }

    /// Asks everything that `transcript` does not hold yet, several at a time, and returns all replies in the order of
    /// the requests. Each reply is written to `transcript` (JSON lines) as it arrives, so that nothing is paid for
    /// twice; at the end the file is put in the order of the requests. While `readable` says no, a request's next try
    /// is made; the reply to the last one stands.
    ///
    /// A request that the endpoint blocks (a content filter, a reply without text) is a [`Reply`] that says so, and no
    /// run asks it again. What an endpoint refuses to be told ([`adapted`](Self::adapted)) is left out from then on.
    ///
    /// # Errors
    /// A transcript of other requests or another judge; an endpoint that refuses everything, or fails through all retries.
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
            let other = |found: String, expected: String| Error::OtherRun {
                path: transcript.into(),
                found,
                expected,
            };
            if !request.tries.iter().any(|(prompt, _)| *prompt == reply.prompt) {
                let found = format!("question {} with another prompt", request.id);
                return Err(other(found, "the prompts of these answers".into()));
            }
            if !reply.asked.is_empty() && reply.asked != self.config.model {
                return Err(other(format!("judge {}", reply.asked), format!("judge {}", self.config.model)));
            }
            *slot = Some(reply.clone());
        }
        let open: Vec<usize> = (0..requests.len()).filter(|&at| replies[at].is_none()).collect();
        if !open.is_empty() {
            if let Some(parent) = transcript.parent().filter(|p| !p.as_os_str().is_empty()) {
                std::fs::create_dir_all(parent).map_err(io)?;
            }
            // A line that a crash cut off goes away before more is appended.
            file::write(transcript, &lines(&known))?;
            let file = std::fs::OpenOptions::new().append(true).open(transcript).map_err(io)?;
            // Whether the endpoint ever gave a text: until then a refusal may be of everything.
            let works = replies.iter().flatten().any(|reply| reply.blocked.is_none());
            let done = Mutex::new(Done { file, replies, works, doubtful: Vec::new() });
            let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
            let work = || -> Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    let Some(&at) = open.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    let (reply, doubt) = self.judge(&requests[at], readable)?;
                    let mut done = done.lock().expect("no worker panics while it writes");
                    done.take(at, reply, doubt).map_err(io)?;
                    if let (false, Some(error)) = (done.works, self.all_refused(&done.doubtful, PATIENCE)) {
                        return Err(error);
                    }
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
            let done = done.into_inner().expect("no worker panics while it writes");
            if let Some(error) = self.all_refused(&done.doubtful, 1) {
                return Err(error);
            }
            replies = done.replies;
        }
        let replies: Vec<Reply> = replies.into_iter().flatten().collect();
        file::write(transcript, &lines(&replies))?;
        Ok(replies)
    }

    /// What the endpoint refused to be told, and so is asked without: one line each, empty if nothing.
    pub fn adapted(&self) -> Vec<&'static str> {
        self.endpoint.shape().told()
    }

    /// The refusals as one error, if there are as many.
    fn all_refused(&self, refused: &[(usize, Reply)], many: usize) -> Option<Error> {
        let (_, reply) = refused.first().filter(|_| refused.len() >= many)?;
        Some(self.error(reply, reply.blocked.clone().unwrap_or_default(), 1))
    }

    fn error(&self, reply: &Reply, message: String, attempts: u32) -> Error {
        Error::Judge { address: self.config.address.clone(), id: reply.id.clone(), message, attempts }
    }

    /// One request, try by try; and whether a refusal is in doubt, being none of this question alone.
    fn judge(&self, request: &Request, readable: fn(&str) -> bool) -> Result<(Reply, bool)> {
        let mut reply = Reply {
            id: request.id.clone(),
            run: request.run,
            asked: self.config.model.clone(),
            judge_model: self.config.model.clone(),
            date: String::new(),
            prompt: String::new(),
            replies: Vec::new(),
            blocked: None,
            usage: Usage::default(),
        };
        let first = request.tries.first().map_or(0.0, |(_, temperature)| *temperature);
        let shift = self.config.temperature.map_or(0.0, |own| own - first);
        for (prompt, temperature) in &request.tries {
            let asked = Asked {
                model: &self.config.model,
                system: request.system,
                prompt,
                temperature: temperature + shift,
                max_tokens: request.max_tokens,
                stop: request.stop,
            };
            reply.prompt = prompt.clone();
            let said = self.send(&asked, &mut reply, readable)?;
            reply.date = now();
            match said {
                Said::Text(text) => reply.replies.push(text),
                Said::Blocked { why, doubt } => {
                    reply.blocked = Some(why);
                    return Ok((reply, doubt));
                }
            }
            if readable(reply.text()) {
                break;
            }
        }
        Ok((reply, false))
    }

    /// Sends one try, again after failures that can pass.
    fn send(&self, asked: &Asked, reply: &mut Reply, readable: fn(&str) -> bool) -> Result<Said> {
        let mut wait = self.config.backoff;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let failure = match self.endpoint.ask(asked, reply, readable) {
                Ok(said) => return Ok(said),
                Err(failure) => failure,
            };
            if !failure.again || attempts > self.config.retries {
                return match failure.empty {
                    true => Ok(Said::Blocked { why: failure.message, doubt: false }),
                    false => Err(self.error(reply, failure.message, attempts)),
                };
            }
            std::thread::sleep(failure.wait.unwrap_or(wait).min(LONGEST_WAIT));
            wait = wait.saturating_mul(2);
        }
    }
}

/// What is known so far, and the file where it goes.
struct Done {
    file: std::fs::File,
    replies: Vec<Option<Reply>>,
    /// Whether the endpoint gave a text to anything.
    works: bool,
    /// Refusals that may be of everything, kept back until something is answered.
    doubtful: Vec<(usize, Reply)>,
}

impl Done {
    fn take(&mut self, at: usize, reply: Reply, doubt: bool) -> std::io::Result<()> {
        self.works |= reply.blocked.is_none();
        if doubt && !self.works {
            self.doubtful.push((at, reply));
            return Ok(());
        }
        self.keep(at, reply)?;
        if self.works {
            for (at, reply) in std::mem::take(&mut self.doubtful) {
                self.keep(at, reply)?;
            }
        }
        Ok(())
    }

    fn keep(&mut self, at: usize, reply: Reply) -> std::io::Result<()> {
        self.file.write_all(&lines([&reply]))?;
        self.replies[at] = Some(reply);
        Ok(())
    }
}
