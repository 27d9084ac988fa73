//! `GET /v2/NAME/referrers/DIGEST`: manifests whose subject is another one.

use std::fmt::Write as _;

use hyper::{Response, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use whelk_image::Digest;
use whelk_image::descriptor::{INDEX, SCHEMA_VERSION};

use super::answers::encode;
use super::{Answer, Call};
use crate::blocking::blocking;
use crate::error::Kind;
use crate::manifests::Referrer;
use crate::names::RepositoryName;

impl Call {
    pub(super) async fn referrers(self, repository: RepositoryName, subject: Digest) -> Answer {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Referrers {
            schema_version: u32,
            media_type: &'static str,
            manifests: Vec<Referrer>,
        }
        if let Some(upstream) = &self.upstream {
            let path = self.with_query(&format!("referrers/{subject}"));
            let (registry, name) = (self.registry.clone(), repository.clone());
            let wanted = subject.clone();
            let is_known = blocking(move || Ok(registry.has_referrers(&name, &wanted))).await?;
            let listing = upstream.listing(&repository, &path, Kind::ManifestUnknown, is_known);
            if let Some(listing) = listing.await? {
                return self.forward_listing(listing).await;
            }
        }
        let kind = self
            .parameter("artifactType")
            .filter(|kind| !kind.is_empty());
        let (kind, last) = (kind.map(str::to_owned), self.last());
        let mut builder = Response::builder().header(header::CONTENT_TYPE, INDEX);
        let mut link = format!("/v2/{repository}/referrers/{subject}?");
        if let Some(kind) = &kind {
            builder = builder.header("oci-filters-applied", "artifactType");
            let kind = utf8_percent_encode(kind, NON_ALPHANUMERIC);
            let _ = write!(link, "artifactType={kind}&");
        }
        let registry = self.registry.clone();
        let find = move || registry.referrers(&repository, &subject, kind.as_deref(), &last);
        let (manifests, has_more) = blocking(find).await?;
        if let Some(last) = manifests.last().filter(|_| has_more) {
            let link = format!("<{link}last={}>; rel=\"next\"", last.digest.hex());
            builder = builder.header(header::LINK, link);
        }
        let index = Referrers {
            schema_version: SCHEMA_VERSION,
            media_type: INDEX,
            manifests,
        };
        self.list(builder, encode(&index)?).await
    }
}
