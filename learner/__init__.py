"""The learner side: objectives, engine, loop, checkpoints, telemetry, export, main."""
