"""What maps give away of the photographs that they were made from: an attack, and its figures."""
