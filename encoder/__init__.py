"""What `modeling` is made of; code outside of it takes the names from there."""
