"""Programs on real data, built of nothing but what users have: `cb demo NAME`, or `python -m demos.NAME`."""
