"""From a suite to records: matrix, keys, stages, store, pool, exports."""
