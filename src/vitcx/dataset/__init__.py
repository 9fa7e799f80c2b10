"""Jobs over data sets: what goes in (`sources`), what comes out (`shards`), resuming (`job`)."""
