"""``/v1/models``: what can be predicted, and with what."""

from __future__ import annotations

import shutil
import uuid
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.background import BackgroundTask
from starlette.responses import FileResponse

from df2serve.service.messages import Example, Load, Unload
from df2serve.service.problems import Code
from df2serve.service.routes.context import AdminKey, Context, PredictKey, Service, problems
from df2serve.service.schemas import ModelFacts, ModelList

__all__ = ["ModelName", "router"]

router = APIRouter(tags=["models"])
ModelName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
_KNOWN = problems(Code.UNAUTHORIZED, Code.FORBIDDEN, Code.MODEL_NOT_FOUND, Code.BAD_PARAMETER)


@router.get("/v1/models", responses=problems(Code.UNAUTHORIZED, Code.FORBIDDEN))
async def list_models(service: Service, _: PredictKey) -> ModelList:
    """List the models."""
    models = tuple(_with_limits(service, facts) for facts in service.pool.models)
    return ModelList(models=models, default=service.pool.default)


@router.get("/v1/models/{model}", responses=_KNOWN)
async def describe_model(model: ModelName, service: Service, _: PredictKey) -> ModelFacts:
    """Tell everything that a client needs to know of a model."""
    return _with_limits(service, service.pool.model(model))


@router.get(
    "/v1/models/{model}/example",
    response_class=FileResponse,
    responses=_KNOWN | {200: {"content": {"application/x-npy": {}}}},
)
async def example_image(model: ModelName, service: Service, _: PredictKey) -> FileResponse:
    """Send the example image of a model as NPY, axes (C, Y, X)."""
    facts = service.pool.model(model)
    id = uuid.uuid4().hex
    async with service.folder(id) as folder:
        path = folder.path / "example.npy"
        await service.pool.ask(Example(id=id, model=facts.name, target=str(path)))
        folder.keep = True
        return FileResponse(
            path,
            media_type="application/x-npy",
            filename=f"{facts.name}-example.npy",
            background=BackgroundTask(shutil.rmtree, folder.path, ignore_errors=True),
        )


@router.post("/v1/admin/models/{model}/load", responses=_KNOWN | problems(Code.MODEL_UNAVAILABLE))
async def load_model(model: ModelName, service: Service, _: AdminKey) -> ModelFacts:
    """Load a model, its newest revision; requests that are under way end with the old one."""
    facts = service.pool.model(model)
    await service.pool.ask_all(lambda n: Load(id=f"{uuid.uuid4().hex}{n}", model=facts.name))
    return _with_limits(service, service.pool.model(model))


@router.post("/v1/admin/models/{model}/unload", responses=_KNOWN)
async def unload_model(model: ModelName, service: Service, _: AdminKey) -> ModelFacts:
    """Free the memory of a model; its next request loads it again."""
    facts = service.pool.model(model)
    await service.pool.ask_all(lambda n: Unload(id=f"{uuid.uuid4().hex}{n}", model=facts.name))
    return _with_limits(service, service.pool.model(model))


def _with_limits(service: Context, facts: ModelFacts) -> ModelFacts:
    settings = service.settings
    limits: dict[str, int | float] = {
        "body_bytes": settings.max_body_bytes,
        "pixels": settings.max_pixels,
        "channels": settings.max_channels,
        "sync_seconds": settings.sync_seconds,
        "images_per_job": settings.max_images,
    }
    return facts.model_copy(update={"limits": limits})
