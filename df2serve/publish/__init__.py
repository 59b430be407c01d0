"""Ensembles out to the world and back: the Hugging Face Hub, and the BioImage Model Zoo."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from df2serve.publish.address import HubAddress as HubAddress
    from df2serve.publish.endpoint import EndpointHandler as EndpointHandler
    from df2serve.publish.hub import Pulled as Pulled
    from df2serve.publish.hub import fetch_model as fetch_model
    from df2serve.publish.hub import open_ensemble as open_ensemble
    from df2serve.publish.hub import pull as pull
    from df2serve.publish.model_card import RenderedCard as RenderedCard
    from df2serve.publish.model_card import render_card as render_card
    from df2serve.publish.push import Change as Change
    from df2serve.publish.push import Pushed as Pushed
    from df2serve.publish.push import PushPlan as PushPlan
    from df2serve.publish.push import plan_push as plan_push
    from df2serve.publish.push import push as push
    from df2serve.publish.zoo import Sent as Sent
    from df2serve.publish.zoo import Submission as Submission
    from df2serve.publish.zoo import UploadPlan as UploadPlan
    from df2serve.publish.zoo import Zoo as Zoo
    from df2serve.publish.zoo import plan_upload as plan_upload
else:
    import lazy_loader

    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "address": ["HubAddress"],
            "endpoint": ["EndpointHandler"],
            "hub": ["Pulled", "fetch_model", "open_ensemble", "pull"],
            "model_card": ["RenderedCard", "render_card"],
            "push": ["Change", "PushPlan", "Pushed", "plan_push", "push"],
            "zoo": ["Sent", "Submission", "UploadPlan", "Zoo", "plan_upload"],
        },
    )

__all__ = [
    "Change",
    "EndpointHandler",
    "HubAddress",
    "Pulled",
    "PushPlan",
    "Pushed",
    "RenderedCard",
    "Sent",
    "Submission",
    "UploadPlan",
    "Zoo",
    "fetch_model",
    "open_ensemble",
    "plan_push",
    "plan_upload",
    "pull",
    "push",
    "render_card",
]
