"""The host waits for the device once an update, however many micro-batches there are."""


def test_an_update_reads_the_device_once(torchrun):
    report = torchrun("host_syncs", 1)
    assert len(report) == 4
    for dtype, counts in report.items():
        assert counts["num_micro_batches"] > 1
        assert counts["before_learning"] == [], dtype
        assert len(counts["update"]) == 1 and counts["update"][0].startswith("tolist at trained.py"), counts
