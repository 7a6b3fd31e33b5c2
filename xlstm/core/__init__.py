"""Code that needs only NumPy, array-api-compat and safetensors."""
