//! Passwords, tokens and rights.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// A registry with users, whose password is `secret`, and rights.
struct Guarded {
    served: Served,
    passwords: Arc<Passwords>,
    directory: PathBuf,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Guarded {
    async fn new(users: &[&str], rights: &str) -> Self {
        let name = format!("whelk-access-{}", crate::names::random());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let (file, own) = (directory.join("users"), directory.join("rights"));
        std::fs::write(&file, lines(users, "secret")).unwrap();
        std::fs::write(&own, rights).unwrap();
        let passwords = Arc::new(Passwords::load(file).unwrap());
        let options = Options {
            passwords: Some(passwords.clone()),
            rights: Some(Rights::load(own).unwrap().into()),
            ..Options::default()
        };
        Self {
            served: Served::with(options).await,
            passwords,
            directory,
        }
    }

    async fn send(&self, method: &str, path: &str, authorization: &str) -> Answer {
        let headers = [("authorization", authorization)];
        self.served.send(method, path, &headers, b"").await
    }

    /// Pushes a blob as a user, and returns its path.
    async fn push(&self, repository: &str, user: &str, content: &[u8]) -> String {
        let digest = Digest::of(content);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let headers = [("authorization", &*basic(user, "secret"))];
        let answer = self.served.send("POST", &path, &headers, content).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        format!("/v2/{repository}/blobs/{digest}")
    }
}

fn lines(users: &[&str], password: &str) -> String {
    let hash = bcrypt::hash(password, 4).unwrap();
    users
        .iter()
        .map(|user| format!("{user}:{hash}\n"))
        .collect()
}

#[tokio::test]
async fn a_token_ends_with_its_password() {
    let guarded = Guarded::new(&["ann", "bob"], "ann pull,push *\nanonymous pull public/*").await;
    let blob = guarded.push("team/a", "ann", b"content").await;
    let wrong = guarded.send("GET", "/token", &basic("ann", "wrong")).await;
    wrong.is(401, "UNAUTHORIZED");
    assert!(
        wrong
            .header("www-authenticate")
            .starts_with("Bearer realm=")
    );
    let issued = guarded.send("GET", "/token", &basic("ann", "secret")).await;
    let token = issued.json()["token"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    assert_eq!(guarded.send("GET", &blob, &bearer).await.status, 200);
    guarded
        .send("GET", &blob, "Bearer none")
        .await
        .is(401, "UNAUTHORIZED");
    // The password was changed, because it is known to others.
    let users = guarded.directory.join("users");
    std::fs::write(&users, lines(&["ann"], "other")).unwrap();
    guarded.passwords.reload().unwrap();
    for authorization in [&bearer, &basic("ann", "secret")] {
        let refused = guarded.send("GET", &blob, authorization).await;
        refused.is(401, "UNAUTHORIZED");
    }
    let other = basic("ann", "other");
    assert_eq!(guarded.send("GET", &blob, &other).await.status, 200);
}

#[tokio::test]
async fn rights_are_needed_for_each_repository() {
    let guarded = Guarded::new(
        &["ann", "bob"],
        "ann pull,push,delete *\nbob pull,push own/*\nnobody pull *",
    )
    .await;
    // Without a line for clients without a password, there are no tokens.
    let refused = guarded.served.get("/v2/").await;
    assert!(refused.header("www-authenticate").starts_with("Basic "));
    guarded
        .send("GET", "/token", &basic("ann", "secret"))
        .await
        .is(404, "UNSUPPORTED");
    let secret = guarded.push("team/a", "ann", b"secret").await;
    let own = guarded.push("own/b", "bob", b"own").await;
    let bob = basic("bob", "secret");
    let digest = Digest::of(b"secret");
    let mount = format!("/v2/own/b/blobs/uploads/?mount={digest}&from=team/a");
    assert_eq!(guarded.send("POST", &mount, &bob).await.status, 202);
    let mounted = format!("/v2/own/b/blobs/{digest}");
    guarded
        .send("GET", &mounted, &bob)
        .await
        .is(404, "BLOB_UNKNOWN");
    guarded.send("GET", &secret, &bob).await.is(403, "DENIED");
    for path in [own.as_str(), "/v2/own/b/manifests/1"] {
        guarded.send("DELETE", path, &bob).await.is(403, "DENIED");
    }
    assert_eq!(guarded.send("GET", &own, &bob).await.status, 200);
    let rights = Rights::load(guarded.directory.join("rights")).unwrap();
    assert_eq!(rights.unknown_users(&guarded.passwords), ["nobody"]);
}
