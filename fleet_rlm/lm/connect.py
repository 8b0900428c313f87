"""From a model's name to a connected, metered `dspy.LM`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from fleet_rlm.config import API_KEY_VARIABLES, Resolved
from fleet_rlm.errors import UsageError, nearest
from fleet_rlm.ledger import Role
from fleet_rlm.lm.prices import UNPRICED, Price, find_price, parse_price
from fleet_rlm.lm.simulated import LABEL, PRICES

if TYPE_CHECKING:
    from fleet_rlm.lm.metered import MeteredLM
    from fleet_rlm.lm.throttle import Gate

Kind = Literal["simulated", "replayed", "live"]

PROVIDER_KEYS: dict[str, tuple[str, ...]] = {
    "anthropic": ("ANTHROPIC_API_KEY",),
    "azure": ("AZURE_API_KEY", "AZURE_OPENAI_API_KEY"),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "fireworks_ai": ("FIREWORKS_API_KEY", "FIREWORKS_AI_API_KEY"),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "groq": ("GROQ_API_KEY",),
    "mistral": ("MISTRAL_API_KEY",),
    "openai": ("OPENAI_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY",),
    "together_ai": ("TOGETHER_API_KEY", "TOGETHERAI_API_KEY"),
    "xai": ("XAI_API_KEY",),
}
"""Providers that take one key, and the variables their own clients read it from."""

LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Everything needed to reach one model, the key aside from what is stored or shown."""

    name: str
    kind: Kind
    price: Price
    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    max_tokens: int | None = None
    temperature: float | None = None
    timeout_s: float = 600.0
    """Longest wait for a reply to one call, or for the next byte of it."""

    cache: bool = False
    """Whether dspy's cache may answer a call that was made before."""

    seed: int = 0
    """Seed of a simulated model; unused by live ones."""

    @property
    def label(self) -> str | None:
        """The sentence that must stand beside this model's numbers, if any."""
        return LABEL if self.kind == "simulated" else None

    def to_json(self) -> dict[str, Any]:
        """What a run stores: no key, and of the endpoint only where it is, not who asks."""
        shown = {"name": self.name, "kind": self.kind}
        optional: dict[str, Any] = {
            "api_base": _public_base(self.api_base),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed if self.kind == "simulated" else None,
        }
        return shown | {key: value for key, value in optional.items() if value is not None}


def kind_of(*models: ModelSpec) -> Kind:
    """The kind of several together: "live" as soon as one is, else that of the first."""
    return "live" if any(model.kind == "live" for model in models) else models[0].kind


def specify(
    name: str,
    *,
    env: Mapping[str, str],
    api_base: str | None = None,
    api_key: str | None = None,
    price: Price | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    timeout_s: float = 600.0,
    cache: bool = False,
    seed: int = 0,
    allow_unpriced: bool = False,
) -> ModelSpec:
    """Check a model's name, key and price before anything is started.

    Args:
        name: "sim", "sim-mini", or provider/name as DSPy writes it; "openai/sim" is the simulated
            model behind a server, see `fleet-rlm sim-server`.
        env: where the provider's own key variable is looked up.
        api_base: address of the service; None for the provider's own.
        api_key: the key that goes with `api_base` or the provider; None to use the provider's
            variable.
        price: overrides the price list.
        max_tokens: longest reply, in tokens; None for the provider's own limit.
        temperature: of the sampling; None for the provider's default.
        timeout_s: longest wait for one reply.
        cache: whether dspy's cache may answer.
        seed: of the simulated model; others take none.
        allow_unpriced: take a model without a price, whose dollars are then unknown and booked
            as 0.

    Raises:
        UsageError: unknown name, no key, or no price.
    """
    if name in PRICES:
        return ModelSpec(
            name=name, kind="simulated", price=price or PRICES[name], cache=cache, seed=seed
        )
    provider, slash, rest = name.partition("/")
    if not slash or not rest:
        hint = nearest(name, [*PRICES, *(f"{p}/..." for p in PROVIDER_KEYS)])
        raise UsageError(
            f"Unknown model {name!r}: write provider/name, or a simulated model. {hint}",
            fix="--model openai/gpt-5-mini",
        )
    key = api_key or _provider_key(provider, env)
    if key is None and api_base and urlsplit(api_base).hostname in LOOPBACK:
        key = "none"  # clients insist on a key that a server on this machine rarely asks for
    if key is None and provider in PROVIDER_KEYS:
        names = " or ".join((API_KEY_VARIABLES[0], *PROVIDER_KEYS[provider]))
        raise UsageError(
            f"No key for model {name!r}: set {names}.", fix=f"export {API_KEY_VARIABLES[0]}=..."
        )
    simulated = rest in PRICES
    if price is None:
        price = PRICES[rest] if simulated else _listed(name, allow_unpriced=allow_unpriced)
    return ModelSpec(
        name=name,
        kind="simulated" if simulated else "live",
        price=price,
        timeout_s=timeout_s,
        cache=cache,
        api_base=api_base,
        api_key=key,
        max_tokens=max_tokens,
        temperature=temperature,
    )


def specify_pair(
    resolved: Resolved,
    env: Mapping[str, str],
    *,
    price: str | None = None,
    sub_price: str | None = None,
    allow_unpriced: bool = False,
) -> tuple[ModelSpec, ModelSpec]:
    """The root model and the one for sub-queries that a configuration names.

    Args:
        resolved: the merged configuration; without `sub_model` both are the root model.
        env: where provider keys are looked up.
        price: "INPUT/OUTPUT" in dollars per million tokens, over the price list.
        sub_price: the same for the sub-model.
        allow_unpriced: take models without a price.

    Raises:
        UsageError: unknown name, no key, no price.
    """
    config = resolved.config
    shared: dict[str, Any] = {
        "env": env,
        "api_base": config.api_base,
        "api_key": resolved.api_key,
        "max_tokens": config.max_completion_tokens,
        "temperature": config.temperature,
        "timeout_s": config.timeout_s,
        "cache": config.cache,
        "allow_unpriced": allow_unpriced,
    }
    root = specify(config.model, price=parse_price(price) if price else None, **shared)
    if config.sub_model in {None, config.model}:
        return root, root
    sub = specify(
        str(config.sub_model), price=parse_price(sub_price) if sub_price else None, **shared
    )
    return root, sub


def specify_judge(
    name: str,
    resolved: Resolved,
    env: Mapping[str, str],
    *,
    price: str | None = None,
    allow_unpriced: bool = False,
) -> ModelSpec:
    """The model that judges answers: the endpoint of the others, and no randomness.

    Args:
        name: as in `specify`.
        resolved: the merged configuration.
        env: where provider keys are looked up.
        price: "INPUT/OUTPUT" in dollars per million tokens, over the price list.
        allow_unpriced: take a model without a price.

    Raises:
        UsageError: unknown name, no key, no price.
    """
    config = resolved.config
    return specify(
        name,
        env=env,
        api_base=config.api_base,
        api_key=resolved.api_key,
        price=parse_price(price) if price else None,
        temperature=0.0,
        timeout_s=config.timeout_s,
        allow_unpriced=allow_unpriced,
    )


def connect(spec: ModelSpec, role: Role, gate: Gate | None = None) -> MeteredLM:
    """The model as a `dspy.LM` that books its calls under `role` in the running sample's ledger.

    Args:
        spec: which model.
        role: who spends.
        gate: shared by all models of a run.
    """
    # dspy's first price look-up would otherwise try the network for five seconds.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from fleet_rlm.lm.metered import MeteredLM

    given = {"max_tokens": spec.max_tokens, "temperature": spec.temperature}
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if spec.kind == "simulated" and spec.api_base is None:
        from fleet_rlm.lm.engines import AsyncEngine
        from fleet_rlm.lm.simulated import SimulatedEngine

        engine = SimulatedEngine(seed=spec.seed)
        settings |= {"engine": engine, "async_engine": AsyncEngine(engine)}
    else:
        from fleet_rlm.lm.engines import reach

        settings |= reach(
            spec.name, api_base=spec.api_base, api_key=spec.api_key, timeout_s=spec.timeout_s
        )
    return MeteredLM(
        spec.name, role=role, price=spec.price, gate=gate, cache=spec.cache, **settings
    )


def _listed(name: str, *, allow_unpriced: bool) -> Price:
    try:
        return find_price(name)
    except UsageError:
        if not allow_unpriced:
            raise
        return UNPRICED


def _provider_key(provider: str, env: Mapping[str, str]) -> str | None:
    return next((env[name] for name in PROVIDER_KEYS.get(provider, ()) if env.get(name)), None)


def _public_base(url: str | None) -> str | None:
    # A URL can carry user:password@; a run folder must not.
    if url is None:
        return None
    parts = urlsplit(url)
    host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    return f"{parts.scheme}://{host}{parts.path}"
