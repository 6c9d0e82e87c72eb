"""The ops, one file each: the public function with its formula, the schema, and the registered gradient."""
