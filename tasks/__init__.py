"""What a run does: one module per step, in the order of a run.

    texts             the user's documents, split into calibration and held-out text
    download          a model's source becomes an fp16 artifact
    pad               its dimensions become multiples of the group size
    preflight         every known trap, asked of this model and config
    capacity          whether this machine can do it
    smoke_test        whether the fp16 model speaks
    quantize          AWQ W4A16 with LMDeploy
    keep_layers       the most damaged layers go back to fp16
    repack            the same numbers in another format
    measure           one variant through its engine: scores, answers, speed
    evaluate          a candidate's measurement beside its parent's
    load_test         a server under load, or two of them compared
    report            the verdict, and the report that people read
    upload            artifacts go into the store
    promote           check a proposal, sign, promote, roll back
    deploy            an endpoint that answers, and scores text as the evidence says
    compare_runtimes  one model through several engine versions
    kv_memory         what a share of GPU memory for the KV cache comes to

A step is a plain, typed function: `tasks.runner.step` declares it, `tasks.runner.parent` runs it in
a process of its own. It imports the rooms below it and no other step; what others read of its
answer stands in `artifacts.records`.
"""
