//! Connections of BuildKit's protocol to the engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use whelk_buildkit::grpc::Channel;
use whelk_buildkit::session;

use super::agents::{Agents, KnownAgents};
use super::secrets::Secrets;
use super::session::Session;
use super::stores::Stores;
use crate::client::Client;
use crate::{Failure, Outcome};

/// Opens a connection on which calls can be made.
pub(crate) async fn connect(client: &Client) -> Outcome<Channel> {
    let stream = client.h2c("/grpc", &[]).await?.into_inner();
    let opened = Channel::open(stream).await;
    let (channel, driver) = opened.map_err(|status| Failure::new(status.message))?;
    tokio::spawn(driver);
    Ok(channel)
}

/// Opens a session with a name, and serves it in the background.
pub(super) async fn open_session(
    client: &Client,
    id: &str,
    shared_key: &str,
    session: Session,
) -> Outcome<()> {
    let headers = session::headers(id, shared_key, &session.methods());
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    let stream = client.h2c("/session", &headers).await?.into_inner();
    tokio::spawn(Arc::new(session).serve(stream));
    Ok(())
}

/// Opens a session with nothing but secrets and ssh agents, and returns its id.
///
/// # Errors
/// Returns an error for secrets and agents that are not valid, and if there is no engine.
pub(crate) async fn open_credentials(
    client: &Client,
    secrets: &[String],
    agents: &[String],
) -> Outcome<String> {
    let agents = Agents::new(agents, true, &mut KnownAgents::default()).await?;
    let session = Session {
        sources: BTreeMap::new(),
        secrets: Arc::new(Secrets::new(secrets)?),
        agents,
        outputs: Vec::new(),
        stores: Stores::default(),
        config: client.config().map(Path::to_owned),
    };
    let id = random_id()?;
    open_session(client, &id, "", session).await?;
    Ok(id)
}

/// Returns a name that no other build has.
pub(crate) fn random_id() -> Outcome<String> {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz012345";
    let mut bytes = [0; 25];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(std::io::Error::from)?;
    let letters = bytes
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(byte % 32)]));
    Ok(letters.collect())
}
