//! Keys and signatures in these tests were made with `openssl ecparam`, `openssl genpkey` and
//! `openssl dgst -sha256 -sign` (`openssl pkeyutl -sign -rawin` for Ed25519).

use super::*;

const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const PAYLOAD: &str = concat!(
    r#"{"critical":{"identity":{"docker-reference":"registry.example.com/team/app"},"#,
    r#""image":{"docker-manifest-digest":"sha256:"#,
    "1111111111111111111111111111111111111111111111111111111111111111",
    r#""},"type":"cosign container image signature"},"optional":null}"#
);

const P256: (&str, &str) = (
    "-----BEGIN PUBLIC KEY-----\n\
     MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEXO03U1FVRRPTIYz4qqEbhLm001ls\n\
     b9j7HNhaBkQ2Gyaad8ENkQMsLlZi6cVBDamIbXcxYjFPJx4fM4krqmoFGg==\n\
     -----END PUBLIC KEY-----",
    "MEUCIQDkmIqKOtQPlqOnu4icHcu+Ggzyx6XPySDwnIXG4cS4iAIgbn9OfNg/s6dmrDz7LlcEHmfR/70g4rpmCu2FWBHk/aQ=",
);
const P384: (&str, &str) = (
    "-----BEGIN PUBLIC KEY-----\n\
     MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEUPqesPlgVloGi2rOzpKWvVrt1Q5wVWsz\n\
     +Wc/z1dcLYJFU9+YCGjocudXvie+qd0DOomPDVuEjWc5DxUlat3UWJ504wv14Dnl\n\
     VzNHJ0CgtfxFfYZ5ao0OGL5J364eSfZh\n\
     -----END PUBLIC KEY-----",
    "MGYCMQDwjg253qh4SxPiXp8J70jmMuLowJFx1zrhskvFWr9W78jnvn9s3ehiBlFY3BFJBZQCMQDtHeDYO5hC7ofp5pxOdjQIN7hF36w1/vwQFbawXpPCdnDjEv+HbwN99I71JBtTjhQ=",
);
const RSA: (&str, &str) = (
    "-----BEGIN PUBLIC KEY-----\n\
     MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA5LUtwUj4LQYHesNQvLdb\n\
     EERum2g/EVSXcMZ+ntnfFkV+qTufe8q4Q+1k/SDgmYeDZg4Nx3sLYMKO2DepW2gp\n\
     bSvrvhsaXcexJL0B1tYQPTg5M//pCRspo8aMdX0Lk7PV4GDnJUDKz3O4lMjeODPc\n\
     TapL/4wvuLmVRjTYixdoGl4+kgkrUkIliJup5RWiVvVxqPUB4CNSVk3hCoyQ6AeR\n\
     jQq45VsWOI5vLR+CxmVYmYALnRMMeANkPS0YY5m3MGqo97+fXrTLMUkPKWIbHCuM\n\
     AuyDbyJsxauwAF8V4jQIKVt3KB3n4tSw0A8gdyNPJJfbmOjYW5ZGLziPSSkFLWt6\n\
     nwIDAQAB\n\
     -----END PUBLIC KEY-----",
    "h7B/+iFUzMy3GtdBr7T1lA+UP16y+n9njMHqLP4UBNgToNNbsCD3uGSnVu5R8ZOBRR84s8PJn/4Ub1Dgyst4JKwW3SXYL6SX+zCEw+qRQjS1PMf9QIGjSW9eMx0YsxP/lBBbYK2saDaL072vhZkiLue7Tbhra9C0qUFedHNK67MDlgLj2+hfVuGwsQhidOUvlq2Q8AS6hy2L7ZuHGSwAMjwRnMcShXWa4f78FaQXliWCu+umUoHbkRouRGNx7nH1hJQJKkoGDwwev0iMOeTSXFpV1uJwQbZXdZh08MuPRyyd2kcxqLLtcQe6781YFhATlpr9smqCdy5tJW6TreKdQw==",
);
const ED25519: (&str, &str) = (
    "-----BEGIN PUBLIC KEY-----\n\
     MCowBQYDK2VwAyEAwMwRoXvZaDzn3pfCnFXnoKi9cAK2nJ5MkL8bAh+mfMc=\n\
     -----END PUBLIC KEY-----",
    "ucPD+UDvgAtg+StDd8KlulF+llLfI+yu7Ntv594qr1t7MJyoGzKL5VdVS2cDKP93SkOkUxgrYpTY6dWJH+fSDg==",
);
const SECP256K1: &str = "-----BEGIN PUBLIC KEY-----\n\
     MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEdDOZbN1vgMneKGAfhfdf+z3FPj01G9Gd\n\
     udMdYrMHWsU4RSMIPuIgAzeFLQojJqSRoGnapZHc7wHkVkRP5LgZqA==\n\
     -----END PUBLIC KEY-----";

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn signature(encoded: &str) -> Signature {
    Signature {
        payload: PAYLOAD.into(),
        signature: STANDARD.decode(encoded).unwrap(),
    }
}

fn policy(json: &str) -> Result<Policy> {
    let mut file = PolicyFile::parse(json.as_bytes())?;
    file.embed_keys(|path| match path.to_str().unwrap() {
        "p256.pub" => Ok(P256.0.into()),
        "p384.pub" => Ok(P384.0.into()),
        "rsa.pub" => Ok(RSA.0.into()),
        "ed25519.pub" => Ok(ED25519.0.into()),
        "secp256k1.pub" => Ok(SECP256K1.into()),
        "text" => Ok("no key".into()),
        _ => Err(io::ErrorKind::NotFound.into()),
    })?;
    // As it is sent to the engine.
    let sent = serde_json::to_vec(&file).unwrap();
    PolicyFile::parse(&sent)?.try_into()
}

/// Returns a policy that requires a signature by a key, and accepts all names in it.
fn signed_by(key: &str) -> Policy {
    let identity = r#"{"type":"matchRepository"}"#;
    policy(&format!(
        r#"{{"default":[{{"type":"sigstoreSigned","keyPath":{key:?},"signedIdentity":{identity}}}]}}"#
    ))
    .unwrap()
}

#[track_caller]
fn assert_rejected(outcome: Result<()>, expected: &str) {
    match outcome {
        Err(Error::Rejected(problem)) => assert!(problem.contains(expected), "{problem}"),
        other => panic!("{other:?}, not: {expected}"),
    }
}

#[test]
fn signatures_of_all_supported_keys_are_verified() {
    let image = reference("registry.example.com/team/app:1");
    let digest: Digest = DIGEST.parse().unwrap();
    for (file, (_, good)) in [
        ("p256.pub", P256),
        ("p384.pub", P384),
        ("rsa.pub", RSA),
        ("ed25519.pub", ED25519),
    ] {
        let policy = signed_by(file);
        assert!(policy.needs_signatures(&image));
        let check = |signatures: &[Signature]| {
            policy.check(&image, std::slice::from_ref(&digest), signatures)
        };
        check(&[signature(good)]).unwrap();
        // One of several is enough.
        let other = if file == "rsa.pub" { P256.1 } else { RSA.1 };
        check(&[signature(other), signature(good)]).unwrap();
        assert_rejected(
            check(&[signature(other)]),
            "not by one of the policy's keys",
        );
        assert_rejected(check(&[]), "the image has none");
        let mut changed = signature(good);
        changed.payload.push(b' ');
        assert_rejected(check(&[changed]), "not by one of the policy's keys");
    }
}

#[test]
fn a_signature_is_for_one_digest_and_one_repository() {
    let policy = signed_by("p256.pub");
    let (image, signatures) = (
        reference("registry.example.com/team/app:1"),
        [signature(P256.1)],
    );
    let (digest, other): (Digest, Digest) = (DIGEST.parse().unwrap(), Digest::of(b"other"));
    let check = |image: &Reference, digests: &[Digest]| policy.check(image, digests, &signatures);
    check(&image, &[other.clone(), digest.clone()]).unwrap();
    assert_rejected(check(&image, &[other]), "it is for the digest sha256:1111");
    let elsewhere = reference("registry.example.com/team/app2:1");
    assert_rejected(
        check(&elsewhere, &[digest]),
        "it is for registry.example.com/team/app",
    );
}

#[test]
fn names_in_signatures_are_matched_as_the_policy_says() {
    let exact = |name: &str| Identity::ExactReference {
        docker_reference: name.into(),
    };
    let repository = |name: &str| Identity::ExactRepository {
        docker_repository: name.into(),
    };
    let digested = format!("h.io/a@{DIGEST}");
    for (identity, image, signed, expected) in [
        (Identity::MatchExact, "h.io/a:1", "h.io/a:1", true),
        (Identity::MatchExact, "h.io/a:1", "h.io/a:2", false),
        (Identity::MatchExact, "h.io/a:1", "h.io/a", false),
        (Identity::MatchExact, &digested, "h.io/a", false),
        (
            Identity::MatchRepoDigestOrExact,
            "h.io/a:1",
            "h.io/a:1",
            true,
        ),
        (
            Identity::MatchRepoDigestOrExact,
            "h.io/a:1",
            "h.io/a",
            false,
        ),
        (
            Identity::MatchRepoDigestOrExact,
            &digested,
            "h.io/a:9",
            true,
        ),
        (Identity::MatchRepoDigestOrExact, &digested, "h.io/b", false),
        (Identity::MatchRepository, "h.io/a:1", "h.io/a", true),
        (Identity::MatchRepository, "h.io/a:1", "h.io/a/b", false),
        (
            Identity::MatchRepository,
            "alpine:3",
            "index.docker.io/library/alpine",
            true,
        ),
        (exact("h.io/b:1"), "h.io/a:1", "h.io/b:1", true),
        (exact("h.io/b:1"), "h.io/a:1", "h.io/a:1", false),
        (repository("h.io/b"), "h.io/a:1", "h.io/b:7", true),
        (repository("h.io/b"), "h.io/a:1", "h.io/a:1", false),
    ] {
        let found = identity.accepts(&reference(image), &reference(signed));
        assert_eq!(found, expected, "{identity:?}: {image} signed as {signed}");
    }
}

#[test]
fn the_most_specific_scope_counts() {
    let policy = policy(
        r#"{"default": [{"type": "reject"}],
            "transports": {
              "docker-daemon": {"": [{"type": "insecureAcceptAnything"}]},
              "docker": {
                "h.io:5000": [{"type": "insecureAcceptAnything"}],
                "h.io:5000/team": [{"type": "reject"}],
                "h.io:5000/team/app": [{"type": "insecureAcceptAnything"}],
                "h.io:5000/team/app:bad": [{"type": "reject"}],
                "*.example.com": [{"type": "insecureAcceptAnything"}]}}}"#,
    )
    .unwrap();
    for (image, is_accepted) in [
        ("h.io:5000/x:1", true),
        ("h.io:5000/team/x:1", false),
        ("h.io:5000/teams/x:1", true),
        ("h.io:5000/team/app:1", true),
        ("h.io:5000/team/app/y:1", true),
        ("h.io:5000/team/app:bad", false),
        ("h.io/x:1", false),
        ("a.example.com/x:1", true),
        ("a.b.example.com:443/x:1", true),
        ("example.com/x:1", false),
        ("alpine:3", false),
    ] {
        let outcome = policy.check(&reference(image), &[], &[]);
        assert_eq!(outcome.is_ok(), is_accepted, "{image}: {outcome:?}");
        assert!(!policy.needs_signatures(&reference(image)));
    }
}

#[test]
fn all_requirements_must_be_met() {
    let policy = policy(
        r#"{"default": [{"type": "insecureAcceptAnything"},
                        {"type": "sigstoreSigned", "keyPaths": ["rsa.pub", "p256.pub"],
                         "signedIdentity": {"type": "matchRepository"}},
                        {"type": "sigstoreSigned", "keyPath": "p384.pub",
                         "signedIdentity": {"type": "matchRepository"}}]}"#,
    )
    .unwrap();
    let image = reference("registry.example.com/team/app:1");
    let check =
        |signatures: &[Signature]| policy.check(&image, &[DIGEST.parse().unwrap()], signatures);
    check(&[signature(P256.1), signature(P384.1)]).unwrap();
    assert_rejected(
        check(&[signature(P256.1)]),
        "accepts none of its 1 signature(s)",
    );
    assert_rejected(
        check(&[signature(P384.1)]),
        "accepts none of its 1 signature(s)",
    );
}

#[test]
fn payloads_that_are_no_signatures_of_images_are_rejected() {
    for (payload, expected) in [
        ("", "its payload is invalid"),
        ("{}", "its payload is invalid: missing field `critical`"),
        (
            &PAYLOAD.replace("cosign container", "atomic container"),
            "not an image's signature",
        ),
        (
            &PAYLOAD.replace("/team/app", "/TEAM"),
            "it is for \"registry.example.com/TEAM\"",
        ),
        (
            &PAYLOAD.replace("sha256:1", "md5:1"),
            "its payload is invalid",
        ),
    ] {
        let problem = Claim::parse(payload.as_bytes()).unwrap_err();
        assert!(problem.contains(expected), "{problem}");
    }
}

#[test]
fn errors_in_policies_name_what_is_wrong() {
    let signed = |fields: &str| format!(r#"{{"default":[{{"type":"sigstoreSigned"{fields}}}]}}"#);
    for (json, expected) in [
        ("[]".to_owned(), "invalid"),
        ("{}".into(), "missing field `default`"),
        (r#"{"default":[]}"#.into(), "default: no requirement"),
        (
            r#"{"default":[{"type":"signedBy"}]}"#.into(),
            "unknown variant `signedBy`",
        ),
        (
            r#"{"default":[{"type":"reject","x":1}]}"#.into(),
            "unknown field `x`",
        ),
        (
            r#"{"default":[{"type":"reject"}],"keys":1}"#.into(),
            "unknown field `keys`",
        ),
        (signed(r#","fulcio":{}"#), "unknown field `fulcio`"),
        (
            signed(r#","keyPath":"a","rekorPublicKeyPath":"b""#),
            "unknown field `rekorPublicKeyPath`",
        ),
        (signed(""), "exactly one of keyPath"),
        (
            signed(r#","keyPath":"p256.pub","keyData":"QQ==""#),
            "exactly one of keyPath",
        ),
        (
            signed(r#","keyPath":"nowhere""#),
            "key nowhere: entity not found",
        ),
        (
            signed(r#","keyPath":"text""#),
            "default: key: not a public key in PEM format",
        ),
        (
            signed(r#","keyPath":"secp256k1.pub""#),
            "keys of curve 1.3.132.0.10 are not supported",
        ),
        (signed(r#","keyData":"?""#), "default: key: "),
        (
            signed(r#","keyPath":"p256.pub","signedIdentity":{"type":"remapIdentity"}"#),
            "unknown variant `remapIdentity`",
        ),
        (
            signed(
                r#","keyPath":"p256.pub","signedIdentity":{"type":"exactRepository","dockerRepository":"a:1"}"#,
            ),
            "dockerRepository \"a:1\": want a repository without a tag",
        ),
    ] {
        let error = policy(&json).unwrap_err().to_string();
        assert!(error.starts_with("signature policy: "), "{error}");
        assert!(error.contains(expected), "{json}: {error}");
    }
}
