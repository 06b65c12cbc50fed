"""Labelling a text at a time and in batches, against transformers and ONNX Runtime at its best, on one CPU."""

import contextlib
import io
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from benchmark.measure import config_of, describe, fresh, race, random_batch, ratio_of, say, their_mask

from minikd.config import EncoderConfig
from minikd.inference import choose_precision, converted, forward_only
from minikd.model import Classifier
from minikd.techniques.quantize import quantize

CPU = torch.device("cpu")
SIZES = ((1, 16), (1, 64), (1, 256), (16, 128), (32, 128))  # texts x tokens


def serving_part(args, figures: dict, save) -> None:
    """Milliseconds of a pass of the 4-layer student, model and weights ready: fp32, the short format and int8 of ours,
    transformers with SDPA, and ONNX Runtime in fp32 (with the operators that its optimiser fuses) and in int8.

    onnxruntime, onnx and onnxscript are needed for its sides alone; without them, a line says so.
    """
    config = config_of(args, "student")
    model = fresh(config).eval()
    short = choose_precision("auto", CPU)[0]
    ours = {"fp32": (model, "fp32"), "int8": (quantize(model, "int8"), "fp32")}
    ours |= {short: (converted(model, short), short)} if short != "fp32" else {}
    with tempfile.TemporaryDirectory() as folder:
        sessions = onnx_sessions(model, config, Path(folder))
        for size, length in [(1, 16), (4, 16)] if args.quick else SIZES:
            sides = sides_of(random_batch(config, size, length, CPU), model, ours, sessions)
            times = race(sides, CPU, args.rounds, 3 * args.budget)
            cell = {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}
            figures[f"{size} x {length}"] = {"ms": cell}
            best = {kind: min((n for n in cell if n.startswith(kind)), key=cell.get, default="") for kind in KINDS}
            line = f"serving {size} x {length}: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in cell.items())
            if best["ONNX"]:
                ratio = ratio_of(times[best["ONNX"]], times[best["minikd"]])
                figures[f"{size} x {length}"]["over_onnx"] = ratio | {"ours": best["minikd"], "theirs": best["ONNX"]}
                line += f"; {best['ONNX']} over {best['minikd']}: {describe(ratio)}"
            say(line)
            save()


KINDS = ("minikd", "ONNX")


def sides_of(batch, model: Classifier, ours: dict, sessions: dict) -> dict[str, Callable[[int], None]]:
    """For each side by its name, a function that makes n passes, each as a call of its own."""
    from reference import sdpa_twin

    twin, mask = sdpa_twin(model).eval(), their_mask(batch)

    def of_torch(forward: Callable[[], object], precision: str) -> Callable[[int], None]:
        def run(count: int) -> None:
            for _ in range(count):
                with forward_only(CPU, precision):
                    forward()

        return run

    def of_onnx(session) -> Callable[[int], None]:
        inputs = {"input_ids": batch.input_ids.numpy(), "attention_mask": mask.numpy()}
        return lambda count: [session.run(None, inputs) for _ in range(count)] and None

    sides = {
        f"minikd {name}": of_torch(lambda one=one: one(batch.input_ids, batch.attention_mask), precision)
        for name, (one, precision) in ours.items()
    }
    sides["transformers fp32"] = of_torch(lambda: twin(batch.input_ids, attention_mask=mask), "fp32")
    return sides | {f"ONNX Runtime {name}": of_onnx(session) for name, session in sessions.items()}


def onnx_sessions(model: Classifier, config: EncoderConfig, folder: Path) -> dict:
    """ONNX Runtime's sessions of the model, of as many threads as torch has: fp32 and int8 (dynamic, as its own
    documentation advises for transformers); none where it is not installed."""
    try:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.transformers import optimizer
    except ImportError as error:
        say(f"serving: without ONNX Runtime ({error}); pip install onnxruntime onnx onnxscript")
        return {}
    from reference import sdpa_twin

    twin = sdpa_twin(model).eval()
    twin.config._attn_implementation = "eager"  # the form that its optimiser knows
    ids = torch.randint(1, config.vocab_size, (2, 16))
    dynamic = {name: {0: "texts", 1: "tokens"} for name in ("input_ids", "attention_mask")}
    quiet = io.StringIO()
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        torch.onnx.export(_Logits(twin), (ids, torch.ones_like(ids)), folder / "model.onnx", input_names=list(dynamic),
                          output_names=["logits"], dynamic_axes=dynamic, opset_version=17, dynamo=False)  # fmt: skip
        shape = {"num_heads": config.num_attention_heads, "hidden_size": config.hidden_size}
        fused = optimizer.optimize_model(str(folder / "model.onnx"), model_type="bert", opt_level=1, **shape)
        fused.save_model_to_file(str(folder / "fp32.onnx"))
        quantize_dynamic(folder / "fp32.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8,
                         extra_options={"DefaultTensorType": 1})  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    providers = ["CPUExecutionProvider"]
    return {name: onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers)
            for name in ("fp32", "int8")}  # fmt: skip


class _Logits(torch.nn.Module):
    """transformers' model as a function of two tensors, as the exporter wants it."""

    def __init__(self, twin):
        super().__init__()
        self.twin = twin

    def forward(self, input_ids, attention_mask):
        return self.twin(input_ids=input_ids, attention_mask=attention_mask).logits
