//! `/v2/NAME/manifests/VERSION`: manifests and indexes, by tag or digest.

use hyper::{Method, Response, StatusCode, header};

use super::answers::{answer, created, empty, named};
use super::{Answer, Call, unsupported};
use crate::blocking::blocking;
use crate::body;
use crate::manifests::MAX_MANIFEST;
use crate::names::{ManifestKey, RepositoryName};

impl Call {
    pub(super) async fn manifest(self, repository: RepositoryName, version: ManifestKey) -> Answer {
        let registry = self.registry.clone();
        match self.method {
            Method::GET | Method::HEAD => {
                let version = match &self.upstream {
                    Some(upstream) => {
                        let digest = upstream.manifest(&registry, &repository, &version).await?;
                        ManifestKey::Digest(digest)
                    }
                    None => version,
                };
                let is_head = self.method == Method::HEAD;
                let find = move || match is_head {
                    true => registry.find_manifest(&repository, &version),
                    false => registry.open_manifest(&repository, &version),
                };
                let found = blocking(find).await?;
                let builder = Response::builder()
                    .header(header::CONTENT_TYPE, &found.media_type)
                    .header(header::CONTENT_LENGTH, found.size);
                // Not held in memory: clients may be slow, and many.
                let body = match is_head {
                    true => body::full(""),
                    false => body::file(found.file, 0, found.size),
                };
                answer(named(builder, &found.digest), body)
            }
            Method::DELETE => {
                blocking(move || registry.delete_manifest(&repository, &version)).await?;
                empty(StatusCode::ACCEPTED)
            }
            _ => Err(unsupported()),
        }
    }

    pub(super) async fn push_manifest(
        mut self,
        repository: RepositoryName,
        version: ManifestKey,
    ) -> Answer {
        let media_type = self.header(header::CONTENT_TYPE).unwrap_or_default();
        let media_type = media_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned();
        let content = self.body.all(MAX_MANIFEST).await?;
        let location = format!("/v2/{repository}/manifests/");
        let store = move || {
            self.registry
                .push_manifest(&repository, &version, &media_type, &content)
        };
        let (digest, subject) = blocking(store).await?;
        let location = format!("{location}{digest}");
        let mut builder = created(&location, &digest);
        if let Some(subject) = subject {
            builder = builder.header("oci-subject", subject.as_str());
        }
        answer(builder, body::full(""))
    }
}
