//! Keys of labels and annotations that this project writes. All of its own are under `sofa.registry/`.

/// Annotation with the exact dataInfoId, since hosts are lower case and may be hashed.
pub const ID_ANNOTATION: &str = "sofa.registry/data-info-id";
/// Annotation with the protocol of a service that its dataInfoId has beside its main one.
pub const PROTOCOL_ANNOTATION: &str = "sofa.registry/protocol";
/// Annotation of a WorkloadEntry with the registerId of the publisher that it comes from.
pub const REGISTER_ID_ANNOTATION: &str = "sofa.registry/register-id";
/// Annotation of an application's entry with the application's name as its publishers write it.
pub const APPLICATION_ANNOTATION: &str = "sofa.registry/application";
/// Label of an entry whose last endpoint went. istiod 1.29 pushes the removal of the last endpoint only if something
/// else in the entry changes with it.
pub const EMPTY_LABEL: &str = "sofa.registry/empty";
/// Prefix of the labels of a WorkloadEntry that come from a publisher. istiod gives a Kubernetes Service the WorkloadEntries of its
/// namespace that its selector names, and a publisher chooses its labels: as `app: session` it would be an endpoint of the
/// session servers' own Service.
pub const WORKLOAD_PREFIX: &str = "sofa.registry/";
/// Label that joins a service's WorkloadEntries to it. Nobody else selects by it, so no Kubernetes Service takes them.
pub const SERVICE_LABEL: &str = "sofa.registry/service";
/// Label and value of an endpoint that is called with mTLS.
pub const TLS_LABEL: (&str, &str) = ("security.istio.io/tlsMode", "istio");
