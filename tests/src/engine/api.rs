//! Requests to an engine's API.

use serde_json::Value;

use super::Engine;
use crate::attached::{Attached, Events};
use crate::http::{self, Response};
use crate::{escape, eventually};

impl Engine {
    /// Sends a request with any headers and body.
    #[track_caller]
    pub fn http(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        http::request(&self.socket(), method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}{}", self.last_words()))
    }

    /// Sends a request with a JSON body. Returns status and response.
    #[track_caller]
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let response = match body {
            Some(body) => self.http(
                method,
                path,
                &[("Content-Type", "application/json")],
                body.to_string().as_bytes(),
            ),
            None => self.http(method, path, &[], b""),
        };
        (response.status, response.json())
    }

    /// Sends a GET request that must succeed. Returns the response.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let (status, answer) = self.api("GET", path, None);
        assert_eq!(status, 200, "GET {path}: {answer}");
        answer
    }

    /// Creates a container from a request body. Returns its ID.
    #[track_caller]
    pub fn create(&self, name: &str, body: &Value) -> String {
        let (status, answer) = self.api(
            "POST",
            &format!("/containers/create?name={}", escape(name)),
            Some(body),
        );
        assert_eq!(status, 201, "create {name}: {answer}");
        answer["Id"].as_str().expect("an id").to_owned()
    }

    /// Returns a container's `inspect` output.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> Value {
        self.get(&format!("/containers/{name}/json"))
    }

    /// Returns a container's status, or "" if it does not exist.
    pub fn state(&self, name: &str) -> String {
        let (status, answer) = self.api("GET", &format!("/containers/{name}/json"), None);
        if status == 200 {
            answer["State"]["Status"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        } else {
            String::new()
        }
    }

    /// Waits until a container has a status ("" for removed). One that is `exited` has released its networks, ports and mounts, too.
    #[track_caller]
    pub fn await_state(&self, name: &str, state: &str) {
        eventually(&format!("{name} to be {state:?}"), || {
            (self.state(name) == state).then_some(())
        });
        if state == "exited" {
            // Answered after that; 404 if it was removed meanwhile.
            let (status, answer) = self.api("POST", &format!("/containers/{name}/wait"), None);
            assert!(matches!(status, 200 | 404), "wait for {name}: {answer}");
        }
    }

    /// Returns the PID of a container's first process in the host's PID namespace.
    #[track_caller]
    pub fn pid(&self, name: &str) -> i32 {
        let pid = self.inspect(name)["State"]["Pid"]
            .as_i64()
            .unwrap_or_default();
        assert!(pid > 0, "{name} has no process");
        i32::try_from(pid).expect("a pid")
    }

    /// Returns everything that a container without a terminal has written to standard output.
    #[track_caller]
    pub fn logs(&self, name: &str) -> String {
        let response = self.http(
            "GET",
            &format!("/containers/{name}/logs?stdout=1"),
            &[],
            b"",
        );
        assert_eq!(response.status, 200, "logs of {name}: {}", response.text());
        let (mut text, mut rest) = (Vec::new(), response.body.as_slice());
        while let Some((head, tail)) = rest.split_first_chunk::<8>() {
            let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
            text.extend_from_slice(&tail[..length]);
            rest = &tail[length..];
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until a container has written `text` to standard output.
    #[track_caller]
    pub fn await_log(&self, name: &str, text: &str) {
        eventually(&format!("{text:?} in the log of {name}"), || {
            self.logs(name).contains(text).then_some(())
        });
    }

    /// Attaches to a container before or while it runs. `streams` is the query, such as
    /// `stream=1&stdout=1`.
    #[track_caller]
    pub fn attach(&self, name: &str, streams: &str, framed: bool) -> Attached {
        Attached::open(
            &self.socket(),
            &format!("/containers/{name}/attach?{streams}"),
            None,
            framed,
        )
    }

    /// Creates an exec. Returns its ID.
    #[track_caller]
    pub fn create_exec(&self, name: &str, body: &Value) -> String {
        let (status, answer) = self.api("POST", &format!("/containers/{name}/exec"), Some(body));
        assert_eq!(status, 201, "exec in {name}: {answer}");
        answer["Id"].as_str().expect("an id").to_owned()
    }

    /// Starts an exec and attaches to its streams.
    #[track_caller]
    pub fn start_exec(&self, id: &str, tty: bool) -> Attached {
        let body = serde_json::json!({"Detach": false, "Tty": tty});
        Attached::open(
            &self.socket(),
            &format!("/exec/{id}/start"),
            Some(&body),
            !tty,
        )
    }

    /// Subscribes to events; `query` may contain a start time or filters.
    #[track_caller]
    pub fn events(&self, query: &str) -> Events {
        Events::open(&self.socket(), &format!("/events?{query}"))
    }

    /// Loads an image archive.
    #[track_caller]
    pub fn load(&self, archive: &[u8]) {
        let response = self.try_load(archive);
        assert!(
            response.status == 200 && !response.text().contains("\"error\""),
            "load: {} {}",
            response.status,
            response.text()
        );
    }

    /// Returns the response to loading an archive that may be rejected.
    #[track_caller]
    pub fn try_load(&self, archive: &[u8]) -> Response {
        self.http(
            "POST",
            "/images/load?quiet=1",
            &[("Content-Type", "application/x-tar")],
            archive,
        )
    }

    /// Imports a root file system archive as an image, with Dockerfile instructions for its
    /// configuration.
    #[track_caller]
    pub fn import(&self, name: &str, changes: &[&str], archive: &[u8]) {
        let changes: String = changes
            .iter()
            .map(|change| format!("&changes={}", escape(change)))
            .collect();
        let path = format!("/images/create?fromSrc=-&repo={}{changes}", escape(name));
        let response = self.http(
            "POST",
            &path,
            &[("Content-Type", "application/x-tar")],
            archive,
        );
        assert!(
            response.status == 200 && !response.text().contains("\"error\""),
            "import {name}: {} {}",
            response.status,
            response.text()
        );
    }
}
