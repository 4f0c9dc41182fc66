"""A Twitter clone on a real follow graph; read `functions.py` first, it is all that users would write.

`workload.py` drives it, `on_anna.py` and `on_redis.py` are the stores that it runs on, `people.py` has the
inputs, `report.py` and `page.py` write what comes out. Run it with `python -m demos.retwis`.
"""
