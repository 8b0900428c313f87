"""A registered bundle as `mlflow models serve` answers with it. MLflow runs this file by itself.

Models, keys and the sandbox come from the environment of the server, as for every command; the
registry holds none of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class BundleModel(PythonModel):
    """Answers rows of `context` and `query`; each gives `answer` and `stop`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the program and connect its models.

        Raises:
            UsageError: the bundle was changed, or model or key are missing.
            SandboxUnavailable: the program runs code and no isolation holds here.
        """
        from fleet_rlm.config import resolve
        from fleet_rlm.ledger import Limits
        from fleet_rlm.lm.connect import specify_pair
        from fleet_rlm.program.find import find_bundle
        from fleet_rlm.runner.arm import Arm
        from fleet_rlm.runner.run import make_bench
        from fleet_rlm.runner.sandboxes import specify_sandbox
        from fleet_rlm.sandbox.redact import Redactor

        entry = find_bundle(context.artifacts["bundle"])
        resolved = resolve({}, os.environ, Path.cwd())
        root, sub = specify_pair(resolved, os.environ)
        arm = Arm(
            program="bundle",
            entry=entry,
            settings=entry.settings_type(),
            root=root,
            sub=sub,
            sandbox=specify_sandbox(resolved.config) if entry.runs_code else None,
            limits=Limits(),
        )
        self._bench = make_bench(arm, Redactor.from_env(os.environ))

    def predict(
        self,
        context: PythonModelContext,
        model_input: pandas.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, str]]:
        """Answer one row after the other.

        Raises:
            SampleError: the model's service or the sandbox failed.
        """
        from fleet_rlm.ledger import Ledger
        from fleet_rlm.runner.attempt import ask

        answers = []
        for row in model_input.to_dict("records"):
            inputs = {name: str(row[name]) for name in ("context", "query")}
            reply = ask(self._bench, inputs, Ledger(self._bench.limits))
            answers.append({"answer": reply.answer, "stop": reply.stop})
        return answers


set_model(BundleModel())
