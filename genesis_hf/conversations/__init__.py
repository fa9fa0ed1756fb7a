"""What people have → conversations and preferences → tokens."""
