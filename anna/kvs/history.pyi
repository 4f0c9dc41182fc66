class History:
    kept_from: int
    floor: int
    window: int
    pasts: dict[bytes, object]
    blurred: dict[bytes, int]
    pins: dict[int, int]
    size_bytes: int
    oldest: int
    def check(self) -> None: ...
