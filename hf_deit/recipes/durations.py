"""Texts of times, as the console and the logs of experiments show them."""


def duration(seconds: float) -> str:
    """Return a time as text, such as `45 s`, `12 min` or `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def time_left(seconds: float) -> str:
    """Return the expected time until the end as text, such as `about 12 min left`."""
    return f"about {duration(seconds)} left"
