//! `/v2/NAME/blobs/uploads/`: uploads of blobs, in one or more requests.

use hyper::{Method, Response, StatusCode, header};
use whelk_image::Digest;

use super::answers::{answer, created, empty, error_response};
use super::{Answer, Call, unsupported};
use crate::blocking::blocking;
use crate::body;
use crate::error::{Kind, Result};
use crate::names::{self, RepositoryName};
use crate::rights::Action;
use crate::uploads::Upload;

impl Call {
    /// Mounts a blob of another repository, receives one in this request, or begins an upload.
    pub(super) async fn begin_upload(mut self, repository: RepositoryName) -> Answer {
        if self.method != Method::POST {
            return Err(unsupported());
        }
        let registry = self.registry.clone();
        if let (Some(digest), Some(from)) = (self.parameter("mount"), self.parameter("from")) {
            let (digest, from) = (names::digest(digest)?, RepositoryName::parse(from)?);
            let (to, wanted) = (repository.clone(), digest.clone());
            let is_permitted = self.permission.has(Action::Pull, &from);
            let mount = move || registry.mount_blob(&to, &wanted, &from);
            if is_permitted && blocking(mount).await? {
                return uploaded(&repository, &digest);
            }
        }
        let digest = self.parameter("digest").map(names::digest).transpose()?;
        let (registry, name) = (self.registry.clone(), repository.clone());
        let id = blocking(move || registry.begin_upload(&name)).await?;
        let Some(digest) = digest else {
            return progress(StatusCode::ACCEPTED, &repository, &id, 0);
        };
        let algorithm = digest.algorithm();
        let upload = Upload::claim(&self.registry, repository.clone(), &id, algorithm).await?;
        // The client does not learn the identifier, so it cannot continue the upload.
        match self.receive(upload).await {
            Ok((upload, _)) => finish(upload, &repository, digest).await,
            Err(error) => {
                let upload = Upload::claim(&self.registry, repository, &id, algorithm).await?;
                blocking(move || upload.cancel()).await?;
                Err(error)
            }
        }
    }

    /// Continues, completes, describes or cancels an upload.
    pub(super) async fn upload(mut self, repository: RepositoryName, id: String) -> Answer {
        if self.method == Method::GET || self.method == Method::HEAD {
            let (registry, name, key) = (self.registry.clone(), repository.clone(), id.clone());
            let length = blocking(move || registry.uploaded(&name, &key)).await?;
            return progress(StatusCode::NO_CONTENT, &repository, &id, length);
        }
        let digest = match self.method {
            Method::PUT => {
                let digest = self.parameter("digest").unwrap_or_default();
                Some(names::digest(digest)?)
            }
            Method::PATCH | Method::DELETE => None,
            _ => return Err(unsupported()),
        };
        let algorithm = digest.as_ref().map(Digest::algorithm).unwrap_or_default();
        let upload = Upload::claim(&self.registry, repository.clone(), &id, algorithm).await?;
        if self.method == Method::DELETE {
            blocking(move || upload.cancel()).await?;
            return empty(StatusCode::NO_CONTENT);
        }
        let (upload, length) = open(upload).await?;
        if let Err(error) = self.check_order(length) {
            drop(upload);
            let mut response = error_response(&error);
            let place = progress(StatusCode::ACCEPTED, &repository, &id, length)?;
            let headers = [header::LOCATION, header::RANGE];
            let headers = headers.map(|name| {
                place
                    .headers()
                    .get(&name)
                    .map(|value| (name, value.clone()))
            });
            response.headers_mut().extend(headers.into_iter().flatten());
            return Ok(response);
        }
        let (upload, length) = self.receive(upload).await?;
        match digest {
            Some(digest) => finish(upload, &repository, digest).await,
            None => progress(StatusCode::ACCEPTED, &repository, &id, length),
        }
    }

    /// Checks that a chunk begins at the upload's end, and that its range is as long as its body. A
    /// request without `Content-Range` continues the upload.
    fn check_order(&self, length: u64) -> Result<()> {
        let Some(range) = self.header(header::CONTENT_RANGE) else {
            return Ok(());
        };
        let parsed = range.trim_start_matches("bytes ").split_once('-');
        let parsed = parsed.and_then(|(first, last)| {
            let last = last.split('/').next()?;
            Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
        });
        let Some((first, last)) = parsed else {
            return Err(Kind::UploadInvalid.error(format!("invalid range {range:?}")));
        };
        if first != length {
            let text = format!("the chunk begins at {first}, but {length} bytes have arrived");
            return Err(Kind::UploadOutOfOrder.error(text));
        }
        let size = self
            .header(header::CONTENT_LENGTH)
            .and_then(|size| size.parse::<u64>().ok());
        let is_long = last.checked_sub(first).and_then(|size| size.checked_add(1));
        if size.is_some_and(|size| is_long != Some(size)) {
            return Err(Kind::UploadOutOfOrder.error("the chunk is not as long as its range"));
        }
        Ok(())
    }

    /// Appends the request's body to an upload.
    async fn receive(&mut self, upload: Upload) -> Result<(Upload, u64)> {
        let mut upload = upload;
        loop {
            let pieces = self.body.pieces().await?;
            if pieces.is_empty() {
                return open(upload).await;
            }
            let append = move || upload.append(&pieces).map(|()| upload);
            upload = blocking(append).await?;
        }
    }
}

async fn open(mut upload: Upload) -> Result<(Upload, u64)> {
    blocking(move || upload.open().map(|length| (upload, length))).await
}

async fn finish(upload: Upload, repository: &RepositoryName, digest: Digest) -> Answer {
    let expected = digest.clone();
    blocking(move || upload.finish(&expected)).await?;
    uploaded(repository, &digest)
}

fn uploaded(repository: &RepositoryName, digest: &Digest) -> Answer {
    let location = format!("/v2/{repository}/blobs/{digest}");
    answer(created(&location, digest), body::full(""))
}

/// Returns a response with the length and the location of an upload.
fn progress(status: StatusCode, repository: &RepositoryName, id: &str, length: u64) -> Answer {
    let builder = Response::builder()
        .status(status)
        .header(
            header::LOCATION,
            format!("/v2/{repository}/blobs/uploads/{id}"),
        )
        .header(header::RANGE, format!("0-{}", length.saturating_sub(1)))
        .header("docker-upload-uuid", id);
    answer(builder, body::full(""))
}
