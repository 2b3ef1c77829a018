"""The tutorial's batch pipeline: two prompts at once, one English and one Chinese, without a
server.

    python examples/batch_pipeline.py MODEL --engine turbomind --cache-max-entry-count 0.4

MODEL is an artifact's digest or a model folder, fp16 or 4 bit. By hand the tutorial writes
`pipeline(path, backend_config=TurbomindEngineConfig(cache_max_entry_count=0.4,
model_format="awq"))`; here the engine runs in a process of its own, so its GPU memory comes back
for certain, and an abort in native code is a Python exception.
"""

from __future__ import annotations

import argparse

from artifacts.records.trusted_code import may_run_code
from configs.variants import weights_and_kv
from flows.run.lookup import engine_of, find_model, variant_of
from tasks.engines.process import EngineProcess
from tasks.engines.protocol import EngineSpec

PROMPTS = ("Give 3 advices on preparing IELTS", "中国科学院是")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--engine", default="turbomind", help="turbomind, pytorch or transformers")
    parser.add_argument(
        "--variant",
        default="w4a16",
        help="only its KV cache counts here: w4a16-kv8 is LMDeploy's quant_policy 8",
    )
    parser.add_argument("--cache-max-entry-count", type=float, default=0.4)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    args = parser.parse_args()
    model = find_model(args.model)
    engine = engine_of(args.engine, cache_max_entry_count=args.cache_max_entry_count)
    with EngineProcess(
        EngineSpec(
            folder=model.folder,
            engine=engine,
            kv_bits=weights_and_kv(variant_of(args.variant, engine))[1],
            trust_remote_code=may_run_code(model.manifest),
        )
    ) as loaded:
        prompts = [loaded.prompt_ids([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
        answers = loaded.generate(prompts, args.max_new_tokens)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        print(f"> {prompt}\n{answer.text}\n[{answer.tokens} tokens]\n")
    print(f"both answers together: {max(answer.seconds for answer in answers):.2f} s")


if __name__ == "__main__":
    main()
