"""Events as the bytes of WebSocket frames, without I/O."""
