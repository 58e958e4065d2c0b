"""How a federation grows: the real coordinator against many sites that only answer."""
