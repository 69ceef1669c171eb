"""Timings, run by hand, each with its own instance of the whole system (`money`: of the database). Nothing is asserted.

    .venv/bin/python -m tests.bench.ttft          first token, cached against cold, beside the engine alone
    .venv/bin/python -m tests.bench.overhead      what a short call pays for going through us
    .venv/bin/python -m tests.bench.precompute    a precompute beside the engine's own prefill
    .venv/bin/python -m tests.bench.money         holds and settlements, a balance, a month rated again

What is compared is measured in turns within one run: on a shared machine only such ratios mean anything.
`--ready-file FILE` takes an instance that `manage.py up --ready-file FILE` runs, instead of starting one; nobody
else may be using it.
"""
