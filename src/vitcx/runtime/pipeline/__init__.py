"""What runs when: pictures on their way, packed into batches."""
