"""
The state-space model in pure PyTorch, in latent and normalised units.

Nothing here knows of darts or Lightning. The files, from the inside out:

- ``networks``: the multilayer perceptron and the conditional residual block;
- ``window``: a stretch of data;
- ``patches``: how a window is cut where a latent state stands for several time steps;
- ``diffusion``: explicit score matching, the preconditioned denoiser, the solver;
- ``distillation``: samplers of a diffusion model with few network evaluations;
- ``probability_flow``: the density of a diffusion model;
- ``context``: the context network, which tells the transition of the past latents;
- ``encoder``: the posterior q_phi(z_t | z_{t-1}, x_{1:T});
- ``transition``: p_psi(z_t | z_{t-j:t-1}, u_t), diffusion or Gaussian;
- ``decoder``: the parameters of the emission p_theta(x_t | z_t, u_t);
- ``particles``: sequential Monte Carlo, for the states where data are missing;
- ``state_space``: the whole, its ELBO, smoothing, filtering and forecasts.

Notation, for the whole package
-------------------------------

===========================  =======================================================
x_t                          observation
z_t                          latent state
u_t                          inputs known at t: future and static covariates
q_phi, p_psi, p_theta        posterior, transition, emission
sigma, sigma_d               noise level, scale of the centred latent
tau                          standard deviation of noise on the encoder's input
kappa                        share of z_{t-1} that the posterior keeps, apart from g
W, b                         drift: coefficients of the linear prediction of z_t
B                            series or windows of a batch
S                            samples of each series
N                            rows: leading axes made one, such as S * B or B * T
T                            time steps of a window
I, G, n                      steps of the input chunk, of the gap between the chunks
                             (``output_chunk_shift``), of the horizon; T = I + G + n
M, L                         patches of a window, time steps of a patch
C                            components of an observation
K                            parameters of the density of one component
D                            dimension of the latent state
U, P                         inputs of all networks, past covariates (transition only)
F                            features of any kind
H                            hidden size of a network, size of a context
E                            size of the embedding of a noise level
k                            network evaluations of a distilled sampler
j                            Markov order of the transition, ``transition_order``
R, A                         steps that a lag kernel reaches back, sums that it makes
Q, V                         steps of a season, its last cycles in an input chunk
===========================  =======================================================

Where a state stands for a patch, the state-space model counts patches: its T is the
number M of patches of the window, and its C is C * L.
"""
