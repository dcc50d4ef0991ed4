//! One request to an OpenAI-compatible endpoint, told only what the endpoint takes.
//!
//! Endpoints differ in their path and in what they refuse: reasoning models want `max_completion_tokens` for `max_tokens`
//! and no `temperature`, some no `stop` or no system turn. What one refused is left out of every later request.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::{JudgeConfig, Reply};
use crate::error::quote;
use crate::reply::after_thinking;

/// No reply is longer; a longer one is an error of the endpoint.
const LONGEST_REPLY: u64 = 4 << 20;
/// The longest reply, in tokens, of a judge that thinks first.
const ROOM_TO_THINK: u32 = 8192;
/// What content filters call themselves in an error's code or text.
const FILTERS: [&str; 7] = [
    "content_filter",
    "contentfilter",
    "content filter",
    "content_policy",
    "content policy",
    "content management policy",
    "data_inspection",
];
/// Words of a refusal that is one of a filter if the endpoint answers other questions.
const FILTER_WORDS: [&str; 9] = [
    "responsibleai",
    "moderation",
    "safety",
    "flagged",
    "inappropriate",
    "filtered",
    "blocked",
    "敏感",
    "不安全",
];

/// One try, as the benchmark wants it.
pub(super) struct Asked<'a> {
    pub model: &'a str,
    pub system: Option<&'static str>,
    pub prompt: &'a str,
    pub temperature: f64,
    pub max_tokens: u32,
    pub stop: Option<&'static str>,
}

/// What came of it.
pub(super) enum Said {
    Text(String),
    /// No text; in doubt if the endpoint does not say that it is this question's fault.
    Blocked {
        why: String,
        doubt: bool,
    },
}

/// Why a request failed, and whether another try can help.
pub(super) struct Failure {
    pub message: String,
    pub again: bool,
    pub wait: Option<Duration>,
    /// A reply came, without a text.
    pub empty: bool,
}

/// How a reply's length is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Limit {
    MaxTokens,
    MaxCompletionTokens,
    None,
}

/// What requests look like. Only ever changed in one direction, so that adapting comes to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Which of the endpoint's possible addresses.
    url: usize,
    limit: Limit,
    temperature: bool,
    stop: bool,
    system: bool,
    /// As long a reply as thinking needs, in place of the benchmark's own limit.
    room: bool,
}

impl Shape {
    /// As the benchmarks were published.
    const PUBLISHED: Self =
        Self { url: 0, limit: Limit::MaxTokens, temperature: true, stop: true, system: true, room: false };

    /// What differs from that, to be told.
    pub(super) fn told(self) -> Vec<&'static str> {
        let limit = match self.limit {
            Limit::MaxTokens => None,
            Limit::MaxCompletionTokens => Some("`max_completion_tokens` in place of `max_tokens`"),
            Limit::None => Some("no limit of the reply's length"),
        };
        let without = [
            (self.temperature, "no `temperature`: the model's own default"),
            (self.stop, "no `stop`: replies are cut here"),
            (self.system, "no system turn: its text stands before the prompt"),
            (!self.room, "longer replies than published: it thinks first"),
        ];
        limit.into_iter().chain(without.into_iter().filter(|(kept, _)| !kept).map(|(_, told)| told)).collect()
    }

    /// Both together: whatever one of them leaves out.
    fn and(self, other: Self) -> Self {
        Self {
            url: self.url.max(other.url),
            limit: self.limit.max(other.limit),
            temperature: self.temperature && other.temperature,
            stop: self.stop && other.stop,
            system: self.system && other.system,
            room: self.room || other.room,
        }
    }

    /// Without what the body of a refusal, in lower case, speaks of; `None` if it speaks of nothing that could be left out.
    fn without(mut self, body: &str, asked: &Asked) -> Option<Self> {
        let before = self;
        let names = |name: &str| {
            let inside = |c: char| c.is_alphanumeric() || c == '_';
            body.match_indices(name).any(|(at, _)| {
                let around = [body[..at].chars().next_back(), body[at + name.len()..].chars().next()];
                around.iter().flatten().all(|c| !inside(*c))
            })
        };
        if names("max_tokens") || names("max_completion_tokens") {
            self.limit = match self.limit {
                Limit::MaxTokens => Limit::MaxCompletionTokens,
                _ => Limit::None,
            };
        }
        self.temperature &= !names("temperature");
        self.stop &= !(asked.stop.is_some() && names("stop"));
        self.system &= !(asked.system.is_some() && names("system") && names("role"));
        (self != before).then_some(self)
    }

    fn body(self, asked: &Asked) -> Value {
        let mut messages = Vec::new();
        let mut prompt = asked.prompt.to_owned();
        match asked.system {
            Some(system) if self.system => messages.push(json!({"role": "system", "content": system})),
            Some(system) => prompt = format!("{system}\n\n{prompt}"),
            None => {}
        }
        messages.push(json!({"role": "user", "content": prompt}));
        let mut body = json!({"model": asked.model, "messages": messages});
        let limit = if self.room { asked.max_tokens.max(ROOM_TO_THINK) } else { asked.max_tokens };
        match self.limit {
            Limit::MaxTokens => body["max_tokens"] = limit.into(),
            Limit::MaxCompletionTokens => body["max_completion_tokens"] = limit.into(),
            Limit::None => {}
        }
        if self.temperature {
            body["temperature"] = asked.temperature.into();
        }
        if let (Some(stop), true) = (asked.stop, self.stop) {
            body["stop"] = json!([stop]);
        }
        body
    }
}

/// A key that is never printed.
struct Key(Option<String>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "(set)" } else { "(none)" })
    }
}

/// The endpoint of a judge.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// The addresses that can be meant, the likeliest first.
    urls: Vec<String>,
    key_env: String,
    key: Key,
    agent: ureq::Agent,
    shape: Mutex<Shape>,
}

/// One exchange.
struct Exchange {
    status: u16,
    retry_after: Option<u64>,
    text: String,
}

impl Endpoint {
    /// `host` is the address without its scheme.
    pub(super) fn new(config: &JudgeConfig, host: &str) -> Self {
        let mut agent = ureq::Agent::config_builder()
            .timeout_global(Some(config.timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("aspo-eval/", env!("CARGO_PKG_VERSION")));
        // An endpoint on this machine is never reached through a proxy.
        if ["127.0.0.1", "localhost", "[::1]"].iter().any(|local| host.starts_with(local)) {
            agent = agent.proxy(None);
        }
        Self {
            urls: urls(&config.address),
            key_env: config.key_env.clone(),
            key: Key(std::env::var(&config.key_env).ok().filter(|key| !key.is_empty())),
            agent: agent.build().new_agent(),
            shape: Mutex::new(Shape::PUBLISHED),
        }
    }

    /// What requests look like by now.
    pub(super) fn shape(&self) -> Shape {
        *self.shape.lock().expect("nothing panics while the shape is changed")
    }

    /// One try. What the endpoint refuses to be told is left out and the request sent again; what it took is remembered.
    pub(super) fn ask(
        &self,
        asked: &Asked,
        reply: &mut Reply,
        readable: fn(&str) -> bool,
    ) -> Result<Said, Failure> {
        let mut shape = self.shape();
        let mut not_found = None;
        let mut guessed = false;
        loop {
            reply.usage.requests += 1;
            let exchange = self.exchange(&self.urls[shape.url], &shape.body(asked))?;
            let value: Result<Value, _> = serde_json::from_str(&exchange.text);
            // Some gateways send a refusal with status 200.
            let refusal = value.as_ref().ok().filter(|value| value["choices"].is_null());
            let status = match refusal.map(|value| &value["error"]) {
                Some(error) if (200..300).contains(&exchange.status) && !error.is_null() => {
                    error["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(400)
                }
                _ => exchange.status,
            };
            if (200..300).contains(&status) {
                let value = value
                    .map_err(|_| passing(format!("a reply that is no JSON: {}", quote(&exchange.text))))?;
                count(&value, reply);
                let said = said(&value, asked, &exchange.text)?;
                if let (Said::Text(text), false) = (&said, shape.room)
                    && !readable(text)
                    && was_cut(&value, text, asked.max_tokens)
                {
                    shape.room = true;
                    continue;
                }
                let mut shared = self.shape.lock().expect("nothing panics while the shape is changed");
                *shared = shared.and(shape);
                return Ok(said);
            }
            let failure = self.failure(status, &exchange);
            let body = exchange.text.to_lowercase();
            let surely = FILTERS.iter().any(|name| body.contains(name));
            let filtered = surely || FILTER_WORDS.iter().any(|word| body.contains(word));
            match status {
                404 | 405 if shape.url + 1 < self.urls.len() => {
                    shape.url += 1;
                    not_found.get_or_insert(failure);
                }
                404 | 405 => return Err(not_found.unwrap_or(failure)),
                // Refused for what it says, or for what it was told beside that.
                400 | 403 | 422 | 451 if filtered => {
                    return Ok(Said::Blocked { why: failure.message, doubt: !surely });
                }
                401 | 403 | 408 | 409 | 425 | 429 => return Err(failure),
                400..500 => match shape.without(&body, asked) {
                    Some(less) => shape = less,
                    // It does not say what: without everything that a reasoning model may refuse.
                    None if !guessed => {
                        guessed = true;
                        shape.temperature = false;
                        shape.stop = false;
                        shape.limit = shape.limit.max(Limit::MaxCompletionTokens);
                    }
                    None => return Ok(Said::Blocked { why: failure.message, doubt: true }),
                },
                _ => return Err(failure),
            }
        }
    }

    fn exchange(&self, url: &str, body: &Value) -> Result<Exchange, Failure> {
        let mut request = self.agent.post(url);
        if let Key(Some(key)) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = request.send_json(body).map_err(|e| match e {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Failure { again: false, ..passing(format!("cannot be asked: {e}")) }
            }
            e => passing(format!("no reply: {e}")),
        })?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
        let text = response.body_mut().with_config().limit(LONGEST_REPLY).read_to_string();
        let text = text.map_err(|e| passing(format!("a reply that cannot be read: {e}")))?;
        Ok(Exchange { status, retry_after, text })
    }

    fn failure(&self, status: u16, exchange: &Exchange) -> Failure {
        let hint = match status {
            401 | 403 => format!(" (the key is read from the environment variable {})", self.key_env),
            404 | 405 => format!(" (asked at {})", self.urls.join(" and ")),
            _ => String::new(),
        };
        Failure {
            message: format!("status {status}{hint}: {}", quote(&exchange.text)),
            again: matches!(status, 408 | 409 | 425 | 429 | 500..),
            wait: exchange.retry_after.map(Duration::from_secs),
            empty: false,
        }
    }
}

/// A failure that may not come again.
fn passing(message: String) -> Failure {
    Failure { message, again: true, wait: None, empty: false }
}

/// Where an address may have its `chat/completions`, the likeliest first; what follows a `?` stays behind it.
fn urls(address: &str) -> Vec<String> {
    let (path, query) = match address.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (address, String::new()),
    };
    let path = path.trim_end_matches('/');
    let with = |end: &str| format!("{path}{end}{query}");
    let bare = path.split_once("://").is_some_and(|(_, rest)| !rest.contains('/'));
    match () {
        () if path.ends_with("/chat/completions") => vec![with("")],
        () if path.ends_with("/chat") => vec![with("/completions")],
        () if bare => vec![with("/v1/chat/completions"), with("/chat/completions")],
        () => vec![with("/chat/completions"), with("/v1/chat/completions")],
    }
}

/// Adds what a reply cost, and who gave it.
fn count(value: &Value, reply: &mut Reply) {
    let tokens = |name: &str| value["usage"][name].as_u64().unwrap_or(0);
    reply.usage.prompt_tokens += tokens("prompt_tokens");
    reply.usage.completion_tokens += tokens("completion_tokens");
    if let Some(model) = value["model"].as_str() {
        reply.judge_model = model.to_owned();
    }
}

/// The text of a reply, up to where the benchmark stops it.
fn said(value: &Value, asked: &Asked, raw: &str) -> Result<Said, Failure> {
    let choice = &value["choices"][0];
    let message = &choice["message"];
    let text = match &message["content"] {
        Value::String(text) => Some(text.clone()),
        // Parts, those of thinking among them.
        Value::Array(parts) => {
            let texts = parts.iter().filter(|part| part["type"].as_str().is_none_or(|kind| kind == "text"));
            Some(texts.filter_map(|part| part["text"].as_str()).collect())
        }
        _ => None,
    };
    let reason = choice["finish_reason"].as_str().unwrap_or_default();
    let filtered = FILTERS.iter().any(|name| reason.to_lowercase().contains(name));
    match text {
        Some(text) if !(filtered && text.trim().is_empty()) => {
            let end = asked.stop.and_then(|stop| text.find(stop)).unwrap_or(text.len());
            Ok(Said::Text(text[..end].to_owned()))
        }
        // A model that used all its tokens on thinking says nothing.
        None if reason == "length" => Ok(Said::Text(String::new())),
        _ if filtered => Ok(Said::Blocked { why: format!("no text, finish_reason {reason}"), doubt: false }),
        _ => match message["refusal"].as_str() {
            Some(refusal) => Ok(Said::Blocked { why: format!("refused: {}", quote(refusal)), doubt: false }),
            None => {
                Err(Failure { empty: true, ..passing(format!("a reply without a message: {}", quote(raw))) })
            }
        },
    }
}

/// Whether a reply that cannot be read stopped before its verdict: it says so, thought without an end, or is as long as it
/// was allowed to be.
fn was_cut(value: &Value, text: &str, max_tokens: u32) -> bool {
    let choice = &value["choices"][0];
    let thought = !choice["message"]["reasoning_content"].is_null() || !text.trim().is_empty();
    // There are no fewer tokens than words; the last one may be missing.
    let words = text.split_whitespace().count() + 1;
    choice["finish_reason"] == "length"
        || after_thinking(text).is_empty() && thought
        || words >= max_tokens as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_understood_with_or_without_its_path() {
        for (address, first) in [
            ("http://host", "http://host/v1/chat/completions"),
            ("http://host:80/", "http://host:80/v1/chat/completions"),
            ("http://host/v1", "http://host/v1/chat/completions"),
            ("http://host/v1/", "http://host/v1/chat/completions"),
            ("http://host/v1/chat/completions", "http://host/v1/chat/completions"),
            ("http://host/v1/chat/completions/", "http://host/v1/chat/completions"),
            (
                "https://x/deployments/y?api-version=1",
                "https://x/deployments/y/chat/completions?api-version=1",
            ),
        ] {
            assert_eq!(urls(address)[0], first, "{address}");
        }
        assert_eq!(urls("http://host/api")[1], "http://host/api/v1/chat/completions");
    }

    #[test]
    fn what_a_refusal_names_is_left_out() {
        let asked = Asked {
            model: "m",
            system: Some("s"),
            prompt: "p",
            temperature: 0.5,
            max_tokens: 3,
            stop: Some("#"),
        };
        let less = |body: &str| Shape::PUBLISHED.without(body, &asked);
        let openai = r#"{"error": {"message": "unsupported parameter: 'max_tokens' is not supported with this model. use 'max_completion_tokens' instead.", "param": "max_tokens"}}"#;
        let shape = less(openai).unwrap();
        let body = shape.body(&asked);
        assert_eq!((&body["max_completion_tokens"], &body["max_tokens"]), (&json!(3), &Value::Null));
        // Refused again under that name: no limit at all.
        let body =
            shape.without("max_completion_tokens: extra fields not permitted", &asked).unwrap().body(&asked);
        assert_eq!((&body["max_completion_tokens"], &body["max_tokens"]), (&Value::Null, &Value::Null));
        let body = less("unsupported value: temperature").unwrap().body(&asked);
        assert_eq!((&body["temperature"], &body["max_tokens"]), (&Value::Null, &json!(3)));
        assert_eq!(less("'stop' is not supported").unwrap().body(&asked)["stop"], Value::Null);
        let body = less("messages[0].role does not support 'system'").unwrap().body(&asked);
        assert_eq!(body["messages"], json!([{"role": "user", "content": "s\n\np"}]));
        assert_eq!(less("the model does not exist"), None);
        assert_eq!(Shape::PUBLISHED.told(), Vec::<&str>::new());
    }
}
