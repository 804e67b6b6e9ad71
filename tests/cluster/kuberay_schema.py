"""The part of KubeRay's API (ray.io/v1) that the manifests use, as JSON schemas: a field that is
not listed is refused, so that a misspelt one can't pass."""

from typing import Any


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def array(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}  # never a bare number

CONTAINER = closed(
    ["name", "image", "resources"],
    name=TEXT,
    image=TEXT,
    ports=array(closed(["name", "containerPort"], name=TEXT, containerPort=COUNT)),
    resources=closed(["requests", "limits"], requests=TEXTS, limits=TEXTS),
    env=array(closed(["name", "value"], name=TEXT, value=TEXT)),
    volumeMounts=array(closed(["name", "mountPath"], name=TEXT, mountPath=TEXT)),
)
VOLUME = closed(
    ["name"],
    name=TEXT,
    persistentVolumeClaim=closed(["claimName"], claimName=TEXT),
    emptyDir=closed([], medium={"enum": ["", "Memory"]}, sizeLimit=TEXT),
)
POD = closed(
    ["spec"], spec=closed(["containers"], containers=array(CONTAINER), volumes=array(VOLUME))
)
HEAD = closed(["rayStartParams", "template"], rayStartParams=TEXTS, template=POD)
WORKERS = closed(
    ["groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    template=POD,
)
RAY_CLUSTER = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=closed(["name"], name=TEXT),
    spec=closed(
        ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
        rayVersion=TEXT,
        enableInTreeAutoscaling={"type": "boolean"},
        autoscalerOptions=closed([], idleTimeoutSeconds=COUNT),
        headGroupSpec=HEAD,
        workerGroupSpecs=array(WORKERS),
    ),
)
RAY_JOB = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(["generateName"], generateName=TEXT),
    spec=closed(
        ["entrypoint", "clusterSelector"],
        entrypoint=TEXT,
        clusterSelector=closed(["ray.io/cluster"], **{"ray.io/cluster": TEXT}),
        submissionMode={"enum": ["K8sJobMode", "HTTPMode"]},
        runtimeEnvYAML=TEXT,
    ),
)
